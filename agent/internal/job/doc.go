// Package job keeps the jobs of the API: what somebody was promised and what became of it.
//
// A job is durable before it is acknowledged, is carried out once, in the order of its unit, and
// is found again after a restart until its retention is over. What a job does is the business of
// whoever takes it from the queue.
package job
