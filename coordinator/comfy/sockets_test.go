// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json/jsontext"
)

// client is a WebSocket client of a test.
type client struct {
	t testing.TB
	c *websocket.Conn
}

// connect opens a socket; flags sends feature_flags as its first frame.
func connect(t testing.TB, base, id string, flags bool) *client {
	t.Helper()
	at := "ws" + strings.TrimPrefix(base, "http") + "/ws"
	if id != "" {
		at += "?clientId=" + id
	}
	c, _, err := websocket.Dial(t.Context(), at, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	c.SetReadLimit(64 << 20)
	if flags {
		hello := `{"type":"feature_flags","data":{"supports_preview_metadata":true}}`
		if err := c.Write(t.Context(), websocket.MessageText, []byte(hello)); err != nil {
			t.Fatal(err)
		}
	}
	return &client{t, c}
}

// next is the next frame, as the recordings write it.
func (c *client) next() (frame any, raw []byte) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 60*time.Second)
	defer cancel()
	kind, raw, err := c.c.Read(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	if kind == websocket.MessageText {
		if !bytes.HasPrefix(raw, []byte(`{"type":`)) {
			c.t.Errorf("frame begins with %.10s", raw)
		}
		v, err := decodeAny(raw)
		if err != nil {
			c.t.Fatal(err)
		}
		return v, raw
	}
	number := func(b []byte) json.Number { return json.Number(strconv.Itoa(int(binary.BigEndian.Uint32(b)))) }
	out := map[string]any{"binary_event": number(raw)}
	switch out["binary_event"] {
	case json.Number("1"):
		out["format"] = number(raw[4:])
		out["image"] = describe(raw[8:])
	case json.Number("4"):
		n := binary.BigEndian.Uint32(raw[4:])
		if out["metadata"], err = decodeAny(raw[8 : 8+n]); err != nil {
			c.t.Fatal(err)
		}
		out["image"] = describe(raw[8+n:])
	}
	return out, raw
}

// expect reads as many frames as were recorded and compares them.
func (c *client) expect(m *marks, recorded ...json.RawMessage) {
	c.t.Helper()
	for i, want := range recorded {
		wanted, err := decodeAny(want)
		if err != nil {
			c.t.Fatal(err)
		}
		got, _ := c.next()
		if d := m.differ(wanted, got, fmt.Sprintf("frame %d", i)); d != "" {
			c.t.Fatalf("%s\ngot  %v\nwant %s", d, got, want)
		}
	}
}

// frameType is a recorded frame's type, or "binary".
func frameType(raw json.RawMessage) string {
	var f struct {
		Type  string `json:"type"`
		Event int    `json:"binary_event"`
		Data  struct{ Node any }
	}
	_ = json.Unmarshal(raw, &f)
	switch {
	case f.Event != 0:
		return "binary"
	case f.Type == "executing" && f.Data.Node == nil:
		return "end"
	}
	return f.Type
}

// workerFrames are the recorded frames that come from a worker.
func workerFrames(frames []json.RawMessage) (out []json.RawMessage) {
	for _, f := range frames {
		switch frameType(f) {
		case "status", "feature_flags", "end":
		default:
			out = append(out, f)
		}
	}
	return out
}

// emit sends a recorded frame as a worker does. A worker that describes its previews
// sends them as event 4.
func emit(m *marks, sink Sink, raw json.RawMessage, describes bool) {
	raw = m.fill(raw)
	for mark, v := range map[string]string{`"<ms>"`: strconv.FormatInt(time.Now().UnixMilli(), 10), "<n>": "00001", "<5 letters>": "abcde", "<repr>": "x", "<line>": "at x"} {
		raw = bytes.ReplaceAll(raw, []byte(mark), []byte(v))
	}
	var f struct {
		Type     string
		Data     json.RawMessage
		Event    uint32 `json:"binary_event"`
		Format   uint32
		Metadata json.RawMessage
		Image    struct {
			Image         string
			Width, Height int
		}
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		panic(err)
	}
	if f.Event == 0 {
		sink.Text(Message{f.Type, f.Data})
		return
	}
	picture := emptyPicture(f.Image.Image, max(f.Image.Width, 1), max(f.Image.Height, 1), 2)
	if f.Event == 1 && describes {
		kind := map[uint32]string{1: "image/jpeg", 2: "image/png"}[f.Format]
		f.Event, f.Metadata = 4, []byte(`{"node_id":"3","image_type":"`+kind+`"}`)
	}
	b := binary.BigEndian.AppendUint32(nil, f.Event)
	if f.Event == 1 {
		b = binary.BigEndian.AppendUint32(b, f.Format)
	} else {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f.Metadata))), f.Metadata...)
	}
	sink.Binary(append(b, picture...))
}

// recordedRun plays the worker of a recorded sequence. Where the sequence says that
// the run was interrupted it waits for that.
func recordedRun(m *marks, frames []json.RawMessage, describes bool) script {
	frames = workerFrames(frames)
	return func(ctx context.Context, _ *Prompt, sink Sink, asked <-chan struct{}) error {
		var err error
		for i := 0; i < len(frames); i++ {
			switch frameType(frames[i]) {
			case "execution_interrupted":
				select {
				case <-asked:
				case <-ctx.Done():
				}
				err = ErrInterrupted
			case "execution_error":
				err = &PromptError{Message: "recorded"}
			case "progress": // a preview that is described comes before its progress
				if describes && i+1 < len(frames) && frameType(frames[i+1]) == "binary" {
					emit(m, sink, frames[i+1], true)
					emit(m, sink, frames[i], true)
					i++
					continue
				}
			}
			emit(m, sink, frames[i], describes)
		}
		return err
	}
}

// blocking runs until it is interrupted.
func blocking(_ context.Context, p *Prompt, sink Sink, asked <-chan struct{}) error {
	say(sink, "execution_start", `{"prompt_id":%q,"timestamp":1}`, p.ID)
	say(sink, "executing", `{"node":"3","display_node":"3","prompt_id":%q}`, p.ID)
	<-asked
	return ErrInterrupted
}

func (b *fakeBackend) plays(s script) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.play = s
}

// submission writes the body of a POST from a recorded history item.
func submissionOf(t *testing.T, m *marks, history map[string]json.RawMessage) (id string, body []byte) {
	t.Helper()
	for mark, entry := range history {
		o, _ := readObject(mustCompact(t, entry))
		parts, err := elements(firstOf(o, "prompt"))
		if err != nil {
			t.Fatal(err)
		}
		id = m.inText(mark)
		extra, _ := readObject(parts[3])
		out := fields("prompt", parts[2], "prompt_id", id, "extra_data", extra.without("client_id"))
		if c, ok := extra.at("client_id"); ok {
			out.set("client_id", c)
		}
		return id, m.fill(out.value())
	}
	t.Fatal("no history")
	return "", nil
}

func mustCompact(t testing.TB, raw []byte) jsontext.Value {
	t.Helper()
	v, err := compact(raw)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// post sends a body and wants a status.
func post(t testing.TB, at string, body []byte, status int) []byte {
	t.Helper()
	resp, err := http.Post(at, "application/json", bytes.NewReader(body))
	return answered(t, resp, err, status)
}

func get(t testing.TB, at string) []byte {
	t.Helper()
	resp, err := http.Get(at)
	return answered(t, resp, err, http.StatusOK)
}

func answered(t testing.TB, resp *http.Response, err error, status int) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d: %s", resp.Request.Method, resp.Request.URL, resp.StatusCode, status, b)
	}
	return b
}

func recordedMarks() *marks {
	m := &marks{map[string]string{"<seed>": "7", "<seed2>": "8", "<seed3>": "9", "<colour>": "5"}}
	for i := range 20 {
		m.values[fmt.Sprintf("<prompt:%d>", i)] = fmt.Sprintf(`"prompt-%d"`, i)
		m.values[fmt.Sprintf("<client:%d>", i)] = fmt.Sprintf(`"client-%d"`, i)
	}
	return m
}

// sid is the client of a recorded sequence, and whether it sent feature_flags.
func sid(t *testing.T, m *marks, frames []json.RawMessage) (id string, flags bool) {
	t.Helper()
	var first struct{ Data struct{ SID string } }
	if err := json.Unmarshal(frames[0], &first); err != nil {
		t.Fatal(err)
	}
	if first.Data.SID != "<hex32>" {
		id = m.inText(first.Data.SID)
	}
	return id, len(frames) > 1 && frameType(frames[1]) == "feature_flags"
}

// replayRun plays one recorded sequence and compares frames and history.
func replayRun(t *testing.T, b *fakeBackend, base string, item recorded, m *marks, describes bool, during func(c *client)) {
	t.Helper()
	replayFrames(t, b, base, item, m, recordedRun(m, item.Frames, describes), during)
}

func replayFrames(t *testing.T, b *fakeBackend, base string, item recorded, m *marks, play script, during func(c *client)) {
	t.Helper()
	id, flags := sid(t, m, item.Frames)
	c := connect(t, base, id, flags)
	before := 1
	if flags {
		before = 2
	}
	c.expect(m, item.Frames[:before]...)
	b.plays(play)
	prompt, body := submissionOf(t, m, item.History)
	post(t, base+"/prompt", body, http.StatusOK)
	frames := item.Frames[before:]
	for i := range frames {
		if frameType(frames[i]) == "execution_interrupted" {
			during(c)
		}
		c.expect(m, frames[i])
	}
	want, err := json.Marshal(item.History)
	if err != nil {
		t.Fatal(err)
	}
	wanted, _ := decodeAny(want)
	got, err := decodeAny(get(t, base+"/history/"+prompt))
	if err != nil {
		t.Fatal(err)
	}
	if d := m.differ(wanted, got, "history"); d != "" {
		t.Errorf("%s in %v", d, got)
	}
}

func replaySockets(t *testing.T, l ledger) {
	b := newFake(t, 1, succeed)
	s, base := serve(t, Config{Backend: b})
	m := recordedMarks()
	all := map[string]recorded{}
	for _, item := range recording(t, "ws") {
		all[item.Name] = item
	}
	run := func(name string) []byte { // of the recorded success, as another prompt
		_, body := submissionOf(t, m, all["success"].History)
		return bytes.ReplaceAll(body, []byte(`"prompt-1"`), []byte(strconv.Quote(name)))
	}
	bystander, whole := (*client)(nil), t // outlives its subtest
	l.each(t, "ws", func(t *testing.T, item recorded) {
		switch item.Name {
		case "connect", "connect_without_client_id", "feature_flags":
			id, flags := sid(t, m, item.Frames)
			connect(t, base, id, flags).expect(m, item.Frames...)
		case "interrupt":
			bystander = connect(whole, base, m.inText("<client:8>"), false)
			replay(t, base, item, m) // nothing runs yet: again in the sequence below
		case "interrupted":
			replayRun(t, b, base, item, m, false, func(*client) { replay(t, base, all["interrupt"], m) })
		case "interrupted_seen_by_another_client":
			c := *bystander
			c.t = t
			c.expect(m, item.Frames...)
		case "interrupt_other_prompt_id":
			b.plays(blocking)
			post(t, base+"/prompt", run("prompt-6"), http.StatusOK)
			replay(t, base, item, m)
		case "still_running_after_that":
			s.mu.Lock()
			same := string(item.Value) == strconv.FormatBool(s.queue.byID["prompt-6"] != nil)
			s.mu.Unlock()
			if !same {
				t.Errorf("want %s", item.Value)
			}
		case "interrupt_this_prompt_id":
			waitRunning(t, s, "prompt-6")
			replay(t, base, item, m)
		case "then_status":
			if status := waitRecord(t, s, "prompt-6").status; !strings.Contains(string(status), `"status_str":`+string(item.Value)) {
				t.Errorf("status %s, want %s", status, item.Value)
			}
		case "interrupt_when_idle", "interrupt_bad_body":
			replay(t, base, item, m)
		case "run_after_idle_interrupt":
			b.plays(succeed)
			post(t, base+"/prompt", run("prompt-7"), http.StatusOK)
			if status := waitRecord(t, s, "prompt-7").status; !strings.Contains(string(status), `"status_str":`+string(item.Value)) {
				t.Errorf("status %s, want %s", status, item.Value)
			}
		case "saved_file_has_metadata":
			b.change(func() {
				b.files[FileRef{"two_00001_.png", "golden", "output"}] = withText(emptyPicture("png", 16, 8, 2), "prompt", "workflow")
			})
			item.Request.Path = strings.ReplaceAll(item.Request.Path, "<n>", "00001")
			replay(t, base, item, m)
		case "reconnect_while_running":
			replayReconnect(t, b, base, item, m, run("prompt-10"))
			waitRecord(t, s, "prompt-10")
		case "prompt_without_client_id":
			replayWithoutClient(t, b, base, item, m)
		default:
			replayRun(t, b, base, item, m, false, nil)
			if item.Name == "success" {
				replayDescribed(t, item, m)
			}
		}
	})
}

// replayWithoutClient has the worker say everything: the bystander sees what was recorded.
func replayWithoutClient(t *testing.T, b *fakeBackend, base string, item recorded, m *marks) {
	whole := item
	whole.Frames = nil
	for _, entry := range item.History {
		o, _ := readObject(mustCompact(t, entry))
		status, _ := readObject(firstOf(o, "status"))
		messages, err := elements(firstOf(status, "messages"))
		if err != nil {
			t.Fatal(err)
		}
		for i, message := range messages {
			if i == len(messages)-1 {
				whole.Frames = append(whole.Frames, workerFrames(item.Frames)...)
				outputs, _ := readObject(firstOf(o, "outputs"))
				for _, n := range outputs.members {
					data := fields("node", n.name, "display_node", n.name, "output", n.value, "prompt_id", "<prompt:11>").value()
					whole.Frames = append(whole.Frames, textFrame("executing", data).data, textFrame("executed", data).data)
				}
			}
			parts, _ := elements(message)
			kind, _ := asText(parts[0])
			whole.Frames = append(whole.Frames, textFrame(kind, parts[1]).data)
		}
	}
	replayFrames(t, b, base, item, m, recordedRun(m, whole.Frames, false), nil)
}

// replayDescribed has the recorded run done by a worker that describes its previews,
// as workers do for the coordinator: the client sees the same.
func replayDescribed(t *testing.T, item recorded, m *marks) {
	b := newFake(t, 1, succeed)
	_, base := serve(t, Config{Backend: b})
	replayRun(t, b, base, item, m, true, nil)
}

// replayReconnect connects twice with one id during a run.
func replayReconnect(t *testing.T, b *fakeBackend, base string, item recorded, m *marks, body []byte) {
	id, _ := sid(t, m, item.Frames)
	at, again := make(chan struct{}), make(chan struct{})
	b.plays(func(ctx context.Context, p *Prompt, sink Sink, asked <-chan struct{}) error {
		say(sink, "executing", `{"node":"3","display_node":"3","prompt_id":%q}`, p.ID)
		close(at)
		<-again
		for _, f := range workerFrames(item.Frames[2:]) {
			emit(m, sink, f, false)
		}
		<-asked
		return ErrInterrupted
	})
	old := connect(t, base, id, false)
	old.next()
	body = bytes.ReplaceAll(body, []byte(`"client-3"`), []byte(strconv.Quote(id)))
	post(t, base+"/prompt", body, http.StatusOK)
	<-at
	c := connect(t, base, id, false)
	c.expect(m, item.Frames[:2]...)
	close(again)
	c.expect(m, item.Frames[2:]...)
	post(t, base+"/interrupt", nil, http.StatusOK)
}

// waitRunning waits until a prompt has a worker.
func waitRunning(t testing.TB, s *Server, id string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); runtime.Gosched() {
		s.mu.Lock()
		found := false
		for _, e := range s.queue.byID[id] {
			found = found || e.lease != nil
		}
		s.mu.Unlock()
		if found {
			return
		}
	}
	t.Fatalf("prompt %s does not run", id)
}

// withText adds tEXt chunks to a PNG after its header.
func withText(picture []byte, keys ...string) []byte {
	const header = 33
	out := bytes.Clone(picture[:header])
	for _, k := range keys {
		chunk := append([]byte("tEXt"+k), 0)
		chunk = append(chunk, "{}"...)
		out = binary.BigEndian.AppendUint32(out, uint32(len(chunk)-4))
		out = append(out, chunk...)
		out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(chunk))
	}
	return append(out, picture[header:]...)
}

func replayQueue(t *testing.T, l ledger) {
	b := newFake(t, 1, blocking)
	s, base := serve(t, Config{Backend: b})
	m := recordedMarks()
	all := map[string]recorded{}
	for _, item := range recording(t, "queue") {
		all[item.Name] = item
	}
	watcher := connect(t, base, "watcher", false)
	graphs, err := decodeQueue(all["running_and_pending"].Response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"prompt:1", "prompt:2", "prompt:3"} {
		body := m.fill(fields("prompt", graphs["<"+id+">"], "prompt_id", "<"+id+">", "client_id", "<client:1>", "front", id == "prompt:3").value())
		post(t, base+"/prompt", body, http.StatusOK)
		if id == "prompt:1" {
			waitRunning(t, s, "prompt-1")
		}
	}
	l.each(t, "queue", func(t *testing.T, item recorded) {
		switch item.Name {
		case "front_goes_first":
			s.mu.Lock()
			var ids []any
			for _, e := range s.queue.list() {
				ids = append(ids, e.prompt.ID)
			}
			s.mu.Unlock()
			want, _ := decodeAny(item.Value)
			if d := m.differ(want, ids, "order"); d != "" {
				t.Error(d)
			}
		case "status_frames":
			waitRecord(t, s, "prompt-1")
			want, _ := decodeAny(item.Value)
			var got []any
			for range want.([]any) {
				_, raw := watcher.next()
				var f struct {
					Data struct {
						Status struct {
							Info struct {
								Remaining json.Number `json:"queue_remaining"`
							} `json:"exec_info"`
						}
					}
				}
				if err := json.Unmarshal(raw, &f); err != nil {
					t.Fatal(err)
				}
				got = append(got, f.Data.Status.Info.Remaining)
			}
			if d := m.differ(want, got, "statuses"); d != "" {
				t.Errorf("%s: %v", d, got)
			}
		default:
			replay(t, base, item, m)
		}
	})
}

// decodeQueue are the graphs of a queue's items, by prompt.
func decodeQueue(raw []byte) (map[string]jsontext.Value, error) {
	v, err := compact(raw)
	if err != nil {
		return nil, err
	}
	o, err := readObject(v)
	if err != nil {
		return nil, err
	}
	out := map[string]jsontext.Value{}
	for _, m := range o.members {
		items, err := elements(m.value)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			parts, err := elements(item)
			if err != nil {
				return nil, err
			}
			id, _ := asText(parts[1])
			out[id] = parts[2]
		}
	}
	return out, nil
}

func replayHistory(t *testing.T, l ledger) {
	b := newFake(t, 1, succeed)
	s, base := serve(t, Config{Backend: b})
	m := recordedMarks()
	all := map[string]recorded{}
	for _, item := range recording(t, "history") {
		all[item.Name] = item
	}
	var one struct {
		Entry struct{ Prompt []json.RawMessage } `json:"<prompt:4>"`
	}
	if err := json.Unmarshal(all["one"].Response.Body, &one); err != nil {
		t.Fatal(err)
	}
	for i := 4; i <= 6; i++ {
		body := fields("prompt", mustCompact(t, one.Entry.Prompt[2]), "prompt_id", fmt.Sprintf("prompt-%d", i), "client_id", m.inText("<client:2>"))
		post(t, base+"/prompt", body.value(), http.StatusOK)
		waitRecord(t, s, fmt.Sprintf("prompt-%d", i))
	}
	inOrder := func(t *testing.T, at string) []byte {
		o, err := readObject(mustCompact(t, get(t, base+at)))
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, r := range o.members {
			ids = append(ids, r.name)
		}
		return encode(ids)
	}
	l.each(t, "history", func(t *testing.T, item recorded) {
		var ordered struct {
			IDs json.RawMessage `json:"ids_in_order"`
		}
		want, got := item.Value, []byte(nil)
		switch {
		case item.Name == "offset_from_the_front":
			got = inOrder(t, "/history?offset=1")
		case json.Unmarshal(item.Response.Body, &ordered) == nil && ordered.IDs != nil:
			want, got = ordered.IDs, inOrder(t, item.Request.Path)
		default:
			replay(t, base, item, m)
			return
		}
		wanted, _ := decodeAny(want)
		have, _ := decodeAny(got)
		if d := m.differ(wanted, have, "ids"); d != "" {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.frees) != 2 {
		t.Errorf("the backend was asked %d times to free memory, want 2", len(b.frees))
	}
}
