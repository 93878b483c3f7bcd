package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
	"vragent/agent/internal/job"
)

var jobFields = []answerField{
	{"jobid", kindUUID, "the job's id"}, {"cmd", kindString, "its command"}, {"jobstatus", kindInteger, "0 open, 1 done, 2 failed"}, {"jobprocstatus", kindInteger, "how far it is, in percent"},
	{"jobnote", kindString, "what it waits for"}, {"jobresultcode", kindInteger, "0, or the error code"}, {"jobresulttype", kindString, "object"}, {"jobresult", kindMap, "the result, or the error"},
	{"jobinstancetype", kindString, "what it is for"}, {"jobinstanceid", kindString, "the id of that"}, {"created", kindDate, "since when it is there"}, {"completed", kindDate, "when it was finished"},
}

// enqueue makes a job of a command and answers with its id.
func (c *call) enqueue(unit, kind, name string, p push) (wire.Object, error) {
	j, err := c.add(unit, kind, name, p)
	if err != nil {
		return nil, err
	}
	return wire.Object{{Name: "jobid", Value: j.ID}}, nil
}

func (c *call) add(unit, kind, name string, p push) (job.Job, error) {
	payload, err := json.Marshal(p)
	if err != nil {
		return job.Job{}, err
	}
	j, err := c.opts.Jobs.Add(job.Job{
		Command: c.cmd.name, Unit: unit, Kind: kind, Name: name,
		Owner: c.user.ID, User: c.user.Name, Role: string(c.user.Role),
	}, payload)
	if err != nil {
		return j, &wire.Error{Code: wire.CodeInternal, Text: err.Error(), Err: err}
	}
	c.job = j.ID
	return j, nil
}

// mayKnow tells whether the caller may know of a job.
func (c *call) mayKnow(j job.Job) bool {
	return c.user.Role == account.Admin || j.Role == string(c.user.Role)
}

func queryJob(c *call) (wire.Object, error) {
	id := c.params.Get("jobid")
	j, err := c.opts.Jobs.Get(id)
	if err == nil && !c.mayKnow(j) {
		err = job.ErrNotFound
	}
	if errors.Is(err, job.ErrNotFound) {
		return nil, &wire.Error{Code: wire.CodeParameter, Text: "Unable to find a job by id " + shorten(id)}
	}
	if err != nil {
		return nil, err
	}
	o, err := jobObject(j)
	if err != nil {
		return nil, err
	}
	if j.HasSecret && j.Owner == c.user.ID {
		return c.reveal(o, j)
	}
	return o, nil
}

// reveal adds the secret to the result of a job, for the one who asked for it and once.
func (c *call) reveal(o wire.Object, j job.Job) (wire.Object, error) {
	secret, err := c.opts.Jobs.TakeSecret(j.ID)
	if err != nil || secret == nil {
		return o, err
	}
	result, ok := o.Get("jobresult").(wire.Object)
	if !ok || len(result) != 1 {
		return nil, fmt.Errorf("job %s: result without an object", j.ID)
	}
	resource, _ := result[0].Value.(wire.Object)
	result[0].Value = append(resource, wire.Field{Name: "password", Value: string(secret)})
	return o, nil
}

// jobObject is a job as CloudStack shows it. Clients rely on jobresultcode being there and on
// jobresult being an object once the job is finished.
func jobObject(j job.Job) (wire.Object, error) {
	var o wire.Object
	o.Add("jobid", j.ID)
	o.Add("cmd", j.Command)
	o.Add("userid", j.Owner)
	o.Add("username", j.User)
	o.Add("account", j.Role)
	o.Add("accountid", account.Role(j.Role).ID())
	o.Add("domainid", account.DomainID)
	o = append(o,
		wire.Field{Name: "jobstatus", Value: int(j.State)},
		wire.Field{Name: "jobprocstatus", Value: j.Percent},
		wire.Field{Name: "jobresultcode", Value: j.Code})
	o.Add("jobnote", j.Note)
	o.Add("jobinstancetype", j.Kind)
	if j.Kind != "Bundle" {
		o.Add("jobinstanceid", j.Name)
	}
	o.Add("created", wire.Date(j.Created))
	switch j.State {
	case job.Done:
		var result wire.Object
		if err := json.Unmarshal(j.Result, &result); err != nil {
			return nil, fmt.Errorf("job %s: result: %w", j.ID, err)
		}
		o = append(o, wire.Field{Name: "jobresulttype", Value: "object"}, wire.Field{Name: "jobresult", Value: result})
	case job.Failed:
		o = append(o, wire.Field{Name: "jobresulttype", Value: "object"},
			wire.Field{Name: "jobresult", Value: wire.Object{{Name: "errorcode", Value: j.Code}, {Name: "errortext", Value: j.Text}}})
	}
	if j.State != job.Open {
		o.Add("completed", wire.Date(j.Completed))
	}
	return o, nil
}

// startLayouts are the forms of startdate.
var startLayouts = []string{"2006-01-02T15:04:05-0700", time.RFC3339, "2006-01-02 15:04:05", "2006-01-02"}

func listJobs(c *call) (wire.Object, error) {
	var start time.Time
	if text := c.params.Get("startdate"); text != "" {
		for _, layout := range startLayouts {
			if t, err := time.Parse(layout, text); err == nil {
				start = t
			}
		}
		if start.IsZero() {
			return nil, c.cmd.invalid("startdate", text)
		}
	}
	jobs, err := c.opts.Jobs.List(func(j job.Job) (ok, more bool) {
		ok = c.mayKnow(j) && c.is("account", j.Role) && c.is("jobstatus", fmt.Sprint(int(j.State))) && !j.Created.Before(start) && c.keyword(j.Command, j.Name, j.User)
		return ok, true
	})
	if err != nil {
		return nil, err
	}
	return page(c, "asyncjobs", jobs, func(j job.Job) wire.Object {
		o, err := jobObject(j)
		if err != nil {
			c.log.Error("job", "job", j.ID, "reason", err)
		}
		return o
	})
}
