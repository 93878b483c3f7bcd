// Package metrics tells Prometheus how the agent fares.
//
// It declares what it needs of the agent as functions (Sources) and asks them when it is scraped;
// what only the one who does it can tell, how long a change took, is reported as it happens
// (ObserveChange). Who may scrape is decided by Handler. What the numbers mean stands in
// packaging/monitoring/README.md, beside the alerts and the dashboard that use them.
package metrics
