package job

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Task is a job that was handed out to be carried out. It belongs to one goroutine at a time;
// Finish or Fail ends it.
type Task struct {
	queue *Queue
	entry *entry
}

// Job returns the job as it is now.
func (t *Task) Job() Job {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	return t.entry.job
}

// Payload returns what was given to Add.
func (t *Task) Payload() ([]byte, error) {
	j := t.Job()
	payload, err := t.queue.opts.Store.Get(payloadPrefix + j.ID)
	if err != nil {
		return nil, fmt.Errorf("job %s: payload: %w", j.ID, err)
	}
	return payload, nil
}

// Release tells that the job is carried out and that only its outcome is open: the next job of
// the unit may be handed out. After a restart the job is handed out as released if Report was
// called since.
func (t *Task) Release() {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	t.queue.release(t.entry)
}

// Return gives the job back, to be handed out again: something that it needs was not there. Until
// then the jobs of its unit wait for it.
func (t *Task) Return() {
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	e := t.entry
	q.release(e)
	e.job.Released = false
	at, _ := slices.BinarySearchFunc(q.waiting, e, bySeq)
	q.waiting = slices.Insert(q.waiting, at, e)
}

// Progress shows how far an open job is, in percent. It is not durable.
func (t *Task) Progress(percent int) {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	t.entry.job.Percent = percent
}

// Report shows what an open job waits for and makes the job durable as it is.
func (t *Task) Report(note string) error {
	t.queue.mu.Lock()
	t.entry.job.Note = note
	j := t.entry.job
	t.queue.mu.Unlock()
	record, err := json.Marshal(j)
	if err != nil {
		return err
	}
	if err := t.queue.opts.Store.Commit(map[string][]byte{jobPrefix + j.ID: record}); err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	return nil
}

// Finish ends the job well. A secret (nil: none) is kept apart and shown once.
//
// Where the store refuses, the error says so and the job is finished for this process only: after
// a restart it is handed out again.
func (t *Task) Finish(result json.RawMessage, secret []byte) error {
	return t.end(func(j *Job) {
		j.State, j.Percent, j.Result, j.HasSecret = Done, 100, result, secret != nil
	}, secret)
}

// Fail ends the job with an error code of the API and a text for whoever asked.
func (t *Task) Fail(code int, text string) error {
	return t.end(func(j *Job) { j.State, j.Code, j.Text = Failed, code, text }, nil)
}

func (t *Task) end(change func(*Job), secret []byte) error {
	q := t.queue
	j := t.Job()
	change(&j)
	j.Note, j.Completed = "", q.opts.Now()
	j.Released = true
	record, err := json.Marshal(j)
	if err == nil {
		changes := map[string][]byte{jobPrefix + j.ID: record, payloadPrefix + j.ID: nil}
		if secret != nil {
			changes[secretPrefix+j.ID] = secret
		}
		err = q.opts.Store.Commit(changes)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.release(t.entry)
	t.entry.job = j
	if err != nil {
		// The record in the store says that the job is open. It is, as far as a restart goes.
		close(t.entry.done)
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	delete(q.open, j.ID)
	q.finished[j.ID] = finished{j.Seq, j.Completed, j.HasSecret, j.State == Failed}
	close(t.entry.done)
	return nil
}
