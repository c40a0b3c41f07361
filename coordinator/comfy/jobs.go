// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"cmp"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// States of a job in /api/jobs.
const (
	jobPending   = "pending"
	jobRunning   = "in_progress"
	jobCompleted = "completed"
	jobFailed    = "failed"
	jobCancelled = "cancelled"
)

// job is a prompt as newer versions of ComfyUI list it. Times are in ms.
type job struct {
	id, status            string
	number                jsontext.Value
	seq                   uint64 // among equal times
	created, began, ended int64
	failure               jsontext.Value // data of execution_error
	workflow              jsontext.Value // the id of the workflow in extra_data
	outputs, previewable  int
	preview               jsontext.Value
}

func (e *entry) job() job {
	j := job{id: e.prompt.ID, status: jobPending, number: e.number, seq: e.seq, created: e.created.UnixMilli()}
	if e.group == nil {
		j.status = jobRunning
	}
	at := e.extra
	for _, name := range []string{"extra_pnginfo", "workflow", "id"} {
		o, err := readObject(at)
		if err != nil {
			return j
		}
		if at, _ = o.at(name); at == nil {
			return j
		}
	}
	j.workflow = at
	return j
}

// summarise counts the outputs and picks the one to show: a saved file before a
// temporary one, a picture before a text.
func (j *job) summarise(outputs *object) {
	best := 0
	for _, node := range outputs.members {
		kinds, err := readObject(node.value)
		if err != nil {
			continue
		}
		for _, k := range kinds.members {
			items, err := elements(k.value)
			if err != nil || k.name == "animated" {
				continue
			}
			for _, item := range items {
				o, err := readObject(item)
				if err != nil {
					continue // texts are no files
				}
				j.outputs++
				rank := previewRank(k.name, o)
				if rank > 0 {
					j.previewable++
				}
				if rank > best {
					best = rank
					o.set("nodeId", text(node.name))
					if _, has := o.at("mediaType"); !has {
						o.set("mediaType", text(k.name))
					}
					j.preview = o.value()
				}
			}
		}
	}
}

// previewRank is how good a preview an output is; 0 is none.
func previewRank(kind string, o *object) int {
	name, _ := o.at("filename")
	file, _ := asText(name)
	format, _ := o.at("format")
	mime, _ := asText(format)
	where, _ := o.at("type")
	saved, _ := asText(where)
	switch ext := strings.ToLower(path.Ext(file)); {
	case kind == "text" || ext == ".txt" || ext == ".md" || ext == ".json":
		return 1
	case kind == "images" || kind == "video" || kind == "audio" || kind == "3d",
		strings.HasPrefix(mime, "video/"), strings.HasPrefix(mime, "audio/"),
		slices.Contains([]string{".obj", ".fbx", ".gltf", ".glb", ".usdz"}, ext):
		if saved == "output" {
			return 3
		}
		return 2
	}
	return 0
}

func (j *job) object() *object {
	o := fields("id", j.id, "status", j.status, "priority", j.number, "create_time", j.created)
	for _, at := range []struct {
		name string
		ms   int64
	}{{"execution_start_time", j.began}, {"execution_end_time", j.ended}} {
		if at.ms != 0 {
			o.set(at.name, encode(at.ms))
		}
	}
	if j.failure != nil {
		o.set("execution_error", j.failure)
	}
	o.set("outputs_count", encode(j.outputs))
	o.set("previewable_outputs_count", encode(j.previewable))
	if j.preview != nil {
		o.set("preview_output", j.preview)
	}
	if j.workflow != nil && j.workflow.Kind() != 'n' {
		o.set("workflow_id", j.workflow)
	}
	return o
}

func (j *job) duration() int64 {
	if j.began == 0 || j.ended == 0 {
		return 0
	}
	return j.ended - j.began
}

// jobs are all prompts, pending, running and done.
func (s *Server) jobs() []job {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []job
	for _, e := range s.queue.running {
		out = append(out, e.job())
	}
	for _, e := range s.queue.list() {
		out = append(out, e.job())
	}
	for _, r := range s.history.page(-1, 0) {
		out = append(out, r.job)
	}
	return out
}

func jobProblem(w http.ResponseWriter, status int, message string) {
	answer(w, status, fields("error", message).value())
}

// listJobs is GET /api/jobs.
func (s *Server) listJobs(w http.ResponseWriter, r *http.Request) {
	q := query(r)
	states := []string{jobPending, jobRunning, jobCompleted, jobFailed, jobCancelled}
	var wanted []string
	for state := range strings.SplitSeq(strings.ToLower(q.Get("status")), ",") {
		if state = strings.TrimSpace(state); state == "" {
			continue
		}
		if !slices.Contains(states, state) {
			jobProblem(w, http.StatusBadRequest, "status "+strconv.Quote(state)+" is none of "+strings.Join(states, ", "))
			return
		}
		wanted = append(wanted, state)
	}
	by := cmp.Or(strings.ToLower(q.Get("sort_by")), "created_at")
	order := cmp.Or(strings.ToLower(q.Get("sort_order")), "desc")
	limit, errLimit := strconv.Atoi(cmp.Or(q.Get("limit"), "1"))
	offset, errOffset := strconv.Atoi(cmp.Or(q.Get("offset"), "0"))
	switch {
	case by != "created_at" && by != "execution_duration":
		jobProblem(w, http.StatusBadRequest, "sort_by is created_at or execution_duration")
		return
	case order != "asc" && order != "desc":
		jobProblem(w, http.StatusBadRequest, "sort_order is asc or desc")
		return
	case errLimit != nil || limit <= 0:
		jobProblem(w, http.StatusBadRequest, "limit is an integer above 0")
		return
	case errOffset != nil:
		jobProblem(w, http.StatusBadRequest, "offset is an integer")
		return
	}
	offset = max(offset, 0)
	all := slices.DeleteFunc(s.jobs(), func(j job) bool {
		workflow, _ := asText(j.workflow)
		return wanted != nil && !slices.Contains(wanted, j.status) || q.Has("workflow_id") && workflow != q.Get("workflow_id")
	})
	slices.SortStableFunc(all, func(a, b job) int {
		c := cmp.Compare(a.created, b.created)
		if by == "execution_duration" {
			c = cmp.Compare(a.duration(), b.duration())
		}
		c = cmp.Or(c, cmp.Compare(a.seq, b.seq))
		if order == "desc" {
			return -c
		}
		return c
	})
	total := len(all)
	page := all[min(offset, total):]
	shownLimit := encode(nil)
	if q.Has("limit") {
		page, shownLimit = page[:min(limit, len(page))], encode(limit)
	}
	items := make([]jsontext.Value, len(page))
	for i := range page {
		items[i] = page[i].object().value()
	}
	answer(w, http.StatusOK, fields("jobs", items,
		"pagination", fields("offset", offset, "limit", shownLimit, "total", total, "has_more", offset+len(page) < total)).value())
}

// oneJob is GET /api/jobs/{id}.
func (s *Server) oneJob(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	s.mu.Lock()
	done, j := s.history.at(id), (*job)(nil)
	if live := s.queue.byID[id]; done == nil && len(live) > 0 {
		first := live[0].job()
		j = &first
	}
	s.mu.Unlock() // a client may read its answer slowly
	switch {
	case done != nil:
		o := done.job.object()
		o.set("outputs", done.outputs)
		o.set("execution_status", done.status)
		if parts, err := elements(done.item); err == nil && len(parts) == 5 {
			o.set("workflow", fields("prompt", parts[2], "extra_data", parts[3]).value())
		}
		answer(w, http.StatusOK, o.value())
	case j != nil:
		answer(w, http.StatusOK, j.object().value())
	default:
		jobProblem(w, http.StatusNotFound, "Job not found")
	}
}

// cancel stops a prompt that waits or runs and says whether there was one.
func (s *Server) cancel(id string) bool {
	if s.interrupt(id) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.queue.remove(id) {
		return false
	}
	s.tellQueue()
	return true
}

// cancelJob is POST /api/jobs/{id}/cancel.
func (s *Server) cancelJob(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, fields("cancelled", s.cancel(r.PathValue("id"))).value())
}

var uuidText = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// cancelJobs is POST /api/jobs/cancel.
func (s *Server) cancelJobs(w http.ResponseWriter, r *http.Request) {
	o, ok := s.readJSON(w, r)
	if !ok {
		return
	}
	ids, err := elements(firstOf(o, "job_ids"))
	if err != nil {
		jobProblem(w, http.StatusBadRequest, "job_ids must be a list")
		return
	}
	var names, invalid []string
	for _, v := range ids {
		id, ok := asText(v)
		if !ok {
			id = string(v)
		}
		if !ok || !uuidText.MatchString(id) {
			invalid = append(invalid, id)
		}
		names = append(names, id)
	}
	if invalid != nil {
		answer(w, http.StatusBadRequest, fields("error", "job_ids contains invalid id(s)", "invalid_ids", invalid).value())
		return
	}
	cancelled := false
	for _, id := range names {
		cancelled = s.cancel(id) || cancelled
	}
	answer(w, http.StatusOK, fields("cancelled", cancelled).value())
}

func firstOf(o *object, name string) jsontext.Value {
	v, _ := o.at(name)
	return v
}
