// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distorch/distorch/coordinator/comfy"
)

// Sizes of a worker's answers.
const (
	maxInfoBytes   = 256 << 20 // object_info of a ComfyUI with hundreds of packs has some 20 MB
	maxAnswerBytes = 64 << 20
	maxErrorBytes  = 64 << 10
	maxNameLen     = 1024
)

// ParseURL checks the address of a ComfyUI and returns it in the one form that is
// stored: scheme, host and port, and a path if a proxy serves it below one.
func ParseURL(text string) (string, error) {
	if len(text) > 2048 {
		return "", fmt.Errorf("the URL of a ComfyUI worker has %d characters; at most 2048", len(text))
	}
	u, err := url.Parse(strings.TrimSpace(text))
	wrong := func(what string) (string, error) {
		return "", fmt.Errorf("worker URL %.200q %s; give it as http://HOST:8188", text, what)
	}
	switch {
	case err != nil:
		return wrong("cannot be read")
	case u.Scheme != "http" && u.Scheme != "https":
		return wrong("does not begin with http:// or https://")
	case u.Hostname() == "":
		return wrong("names no host")
	case u.User != nil:
		return wrong("holds a password, which every operator could list")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return wrong("has a query or a fragment")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return wrong("has no usable port")
		}
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return (&url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host), Path: u.Path}).String(), nil
}

// statusError is an answer that was not 200.
type statusError struct {
	path   string
	status int
	body   []byte
}

func (e *statusError) Error() string {
	text := strings.TrimSpace(string(e.body))
	if len(text) > 200 {
		text = text[:200] + "..."
	}
	return strings.TrimSpace(fmt.Sprintf("%s answered %d %s", e.path, e.status, text))
}

// api calls one ComfyUI.
type api struct {
	base string
	http *http.Client
}

func newClient(t http.RoundTripper) *http.Client {
	return &http.Client{
		Transport: t,
		// A worker is one machine; it does not send the coordinator elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 5 * time.Minute, // a ComfyUI that loads a model answers late
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
	}
}

func (a api) request(ctx context.Context, method, path string, q url.Values, contentType string, body io.Reader) (*http.Response, error) {
	target := a.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return a.http.Do(req)
}

// read makes a call whose answer is at most limit bytes.
func (a api) read(ctx context.Context, method, path string, q url.Values, body any, limit int64) ([]byte, error) {
	var r io.Reader
	contentType := ""
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r, contentType = bytes.NewReader(raw), "application/json"
	}
	resp, err := a.request(ctx, method, path, q, contentType, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) //nolint:errcheck // what there is of it is shown
		return nil, &statusError{path, resp.StatusCode, text}
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: the answer is longer than %d bytes", path, limit)
	}
	return raw, nil
}

func (a api) objectInfo(ctx context.Context) ([]byte, error) {
	return a.read(ctx, http.MethodGet, "/object_info", nil, nil, maxInfoBytes)
}

// workerQueue is what stands in a worker's queue, by prompt id.
type workerQueue struct{ running, pending []string }

func (q workerQueue) has(id string) bool {
	return slices.Contains(q.running, id) || slices.Contains(q.pending, id)
}

func (a api) queue(ctx context.Context) (workerQueue, error) {
	raw, err := a.read(ctx, http.MethodGet, "/queue", nil, nil, maxAnswerBytes)
	if err != nil {
		return workerQueue{}, err
	}
	var answer struct {
		Running []json.RawMessage `json:"queue_running"`
		Pending []json.RawMessage `json:"queue_pending"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return workerQueue{}, fmt.Errorf("/queue: %w", err)
	}
	ids := func(items []json.RawMessage) (out []string) {
		for _, item := range items {
			id := ""
			if l, ok := asList(item); ok && len(l) > 1 {
				id, _ = asText(l[1])
			}
			out = append(out, id)
		}
		return out
	}
	return workerQueue{ids(answer.Running), ids(answer.Pending)}, nil
}

func (a api) stats(ctx context.Context) (json.RawMessage, error) {
	raw, err := a.read(ctx, http.MethodGet, "/system_stats", nil, nil, maxErrorBytes*4)
	if err != nil {
		return nil, err
	}
	if _, err := parseObject(raw); err != nil {
		return nil, fmt.Errorf("/system_stats: %w", err)
	}
	return raw, nil
}

// features says whether a ComfyUI knows flags of features at all.
func (a api) features(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := a.read(ctx, http.MethodGet, "/features", nil, nil, maxErrorBytes)
	if s, ok := errors.AsType[*statusError](err); ok && s.status == http.StatusNotFound {
		return false, nil
	}
	return err == nil, err
}

// prompt queues a prompt and returns the id that the worker gave it.
func (a api) prompt(ctx context.Context, body any) (string, error) {
	raw, err := a.read(ctx, http.MethodPost, "/prompt", nil, body, maxAnswerBytes)
	if err != nil {
		return "", err
	}
	var answer struct {
		PromptID string `json:"prompt_id"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.PromptID == "" {
		return "", fmt.Errorf("/prompt: the answer has no prompt_id: %.200s", raw)
	}
	return answer.PromptID, nil
}

// history is the entry of one prompt; ok says whether it has ended.
func (a api) history(ctx context.Context, id string) (entry object, ok bool, err error) {
	raw, err := a.read(ctx, http.MethodGet, "/history/"+url.PathEscape(id), nil, nil, maxAnswerBytes)
	if err != nil {
		return nil, false, err
	}
	all, err := parseObject(raw)
	if err != nil {
		return nil, false, fmt.Errorf("/history: %w", err)
	}
	v, ok := all.at(id)
	if !ok {
		return nil, false, nil
	}
	entry, ok = asObject(v)
	return entry, ok, nil
}

// withdraw takes a prompt out of the worker's queue, or interrupts it if it runs.
func (a api) withdraw(ctx context.Context, id string) error {
	_, err := a.read(ctx, http.MethodPost, "/queue", nil, map[string][]string{"delete": {id}}, maxErrorBytes)
	q, qerr := a.queue(ctx)
	if qerr != nil {
		return errors.Join(err, qerr)
	}
	// A ComfyUI that does not know prompt_id interrupts whatever runs.
	if !slices.Contains(q.running, id) {
		return err
	}
	_, ierr := a.read(ctx, http.MethodPost, "/interrupt", nil, map[string]string{"prompt_id": id}, maxErrorBytes)
	return errors.Join(err, ierr)
}

func (a api) view(ctx context.Context, f file, q url.Values) (*http.Response, error) {
	return a.viewRange(ctx, f, comfy.View{Query: q})
}

func (a api) viewRange(ctx context.Context, f file, v comfy.View) (*http.Response, error) {
	all := url.Values{"filename": {f.Name}, "subfolder": {f.Subfolder}, "type": {f.Type}}
	for _, k := range []string{"preview", "channel"} {
		if x := v.Query.Get(k); x != "" {
			all.Set(k, x)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+"/view?"+all.Encode(), nil)
	if err != nil {
		return nil, err
	}
	if v.Range != "" {
		req.Header.Set("Range", v.Range)
	}
	return a.http.Do(req)
}

// upload gives the worker a file. The worker may know it by another name, which
// is returned: it keeps a file of its own that has the name already.
func (a api) upload(ctx context.Context, route string, f file, overwrite bool, fields map[string]string, content io.Reader) (file, error) {
	pr, pw := io.Pipe()
	form := multipart.NewWriter(pw)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(writeForm(form, f, overwrite, fields, content))
	}()
	resp, err := a.request(ctx, http.MethodPost, route, nil, form.FormDataContentType(), pr)
	pr.CloseWithError(errors.New("the worker has answered"))
	<-done
	if err != nil {
		return file{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil {
		return file{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return file{}, &statusError{route, resp.StatusCode, raw}
	}
	var answer struct{ Name, Subfolder, Type string }
	if err := json.Unmarshal(raw, &answer); err != nil {
		return file{}, fmt.Errorf("%s: %w", route, err)
	}
	return file{Type: answer.Type, Subfolder: answer.Subfolder, Name: answer.Name}, nil
}

func writeForm(form *multipart.Writer, f file, overwrite bool, fields map[string]string, content io.Reader) error {
	set := map[string]string{"type": f.Type, "subfolder": f.Subfolder}
	if overwrite {
		set["overwrite"] = "true"
	}
	maps.Copy(set, fields)
	for k, v := range set {
		if err := form.WriteField(k, v); err != nil {
			return err
		}
	}
	part, err := form.CreateFormFile("image", f.Name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(part, content); err != nil {
		return err
	}
	return form.Close()
}

// contentType is by a file's name, as ComfyUI's own.
func contentType(name string) string {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "application/octet-stream"
	}
	if t := mime.TypeByExtension(strings.ToLower(name[i:])); t != "" {
		return t
	}
	return "application/octet-stream"
}
