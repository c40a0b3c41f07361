// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/coordinator/patches"
	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// blobs are files that clients uploaded, by digest.
type blobs map[string]string

func (b blobs) file(digest string) (string, error) {
	if path, ok := b[digest]; ok {
		return path, nil
	}
	return "", errors.New("upload it first")
}

// add makes of a LoRA file what a client sends of it.
func (b blobs) add(t *testing.T, path string) (digest string) {
	t.Helper()
	f, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := func(name, as string) safetensors.Data {
		x, ok := f.Lookup(name)
		if !ok {
			t.Fatalf("no tensor %s", name)
		}
		raw := make([]byte, x.Size)
		if err := f.ReadAt(raw, x, 0); err != nil {
			t.Fatal(err)
		}
		return safetensors.Data{Entry: safetensors.Entry{Name: as, DType: x.DType, Shape: x.Shape}, Bytes: raw}
	}
	var list []map[string]any
	var data []safetensors.Data
	for _, layer := range []string{"double_blocks.0.img_attn.qkv", "single_blocks.2.linear2", "img_in", "double_blocks.1.txt_mlp.0"} {
		name := "lora_unet_" + strings.ReplaceAll(layer, ".", "_")
		if _, ok := f.Lookup(name + ".alpha"); !ok {
			continue
		}
		n := len(list)
		up, down := fmt.Sprintf("%d.up", n), fmt.Sprintf("%d.down", n)
		data = append(data, read(name+".lora_up.weight", up), read(name+".lora_down.weight", down))
		list = append(list, map[string]any{"key": layer + ".weight", "type": "lora", "offset": nil, "function": nil, "alpha": 2.0, "tensors": []string{up, down}})
	}
	return b.write(t, list, data)
}

func (b blobs) write(t *testing.T, list any, data []safetensors.Data) (digest string) {
	t.Helper()
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	if err := safetensors.Encode(&raw, data, map[string]string{lora.PatchesKey: string(text)}); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw.Bytes())
	digest = hex.EncodeToString(sum[:])
	b[digest] = filepath.Join(t.TempDir(), digest)
	if err := os.WriteFile(b[digest], raw.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return digest
}

// bringing is a cluster whose deployments take LoRAs of clients.
type bringing struct {
	*testing.T
	blobs
	cfg    *config.Config
	co     *process
	conn   *grpc.ClientConn
	loras  *patches.Patches
	agents map[string]*process
}

func (c *bringing) start() {
	c.Helper()
	got := make(chan *patches.Patches, 1)
	c.co = startCoordinator(c, c.cfg, func(co *Coordinator) { co.Brought = func(p *patches.Patches) { got <- p } })
	c.cfg.Coordinator.Listen = c.co.address
	cluster, err := c.co.dir.Cluster()
	if err != nil {
		c.Fatal(err)
	}
	c.cfg.Coordinator.Etcd.ClientListen = strings.TrimPrefix(cluster.Etcd[0], "https://")
	c.conn, c.loras = operator(c, c.co), <-got
}

func (c *bringing) ensure(digests ...string) error {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), 30*time.Second)
	defer cancel()
	return c.loras.Ensure(ctx, "demo", digests, c.file)
}

func (c *bringing) status() *pb.DeploymentStatus {
	c.Helper()
	return await(c, c.conn, "a loaded plan", ready)
}

// A client's LoRA by its digest gives the bits that the same LoRA gives as an
// operator's file, on nodes without that file too.
func TestLoRAsOfClients(t *testing.T) {
	dir := demoLoRA(t)
	writeLoRA(t, filepath.Join(dir, "detail.safetensors"), 8, "single_blocks.2.linear2", "double_blocks.1.txt_mlp.0")
	c := &bringing{T: t, blobs: blobs{}, cfg: testConfig(t.TempDir()), agents: map[string]*process{}}
	c.start()
	withFiles := testConfig(t.TempDir())
	withFiles.Models.Dirs = append(withFiles.Models.Dirs, dir)
	c.agents["a"] = startAgentWith(t, "a", token(t, c.conn), withFiles)
	bConfig := testConfig(t.TempDir())
	c.agents["b"] = startAgentWith(t, "b", token(t, c.conn), bConfig)
	style, detail := c.add(t, filepath.Join(dir, "style.safetensors")), c.add(t, filepath.Join(dir, "detail.safetensors"))

	// As files of the operator.
	answer, err := pb.NewControlClient(c.conn).Deploy(t.Context(), &pb.DeployRequest{Spec: &pb.DeploymentSpec{
		Name: "demo", Model: "demo.safetensors", Workload: &pb.Workload{Dims: demoDims, InFlight: 2}, Pins: []*pb.Pin{{Node: "a", Blocks: 6}},
		Loras: []*pb.LoRA{{Name: "style"}, {Name: "detail"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	await(t, c.conn, "the operator's LoRAs", func(s *pb.DeploymentStatus) bool {
		return s.Plan.GetGeneration() == answer.Spec.Generation && s.Ready
	})
	one := withStrengths(t, c.conn, map[string]float32{"style.safetensors": 0.8}, nil)
	both := withStrengths(t, c.conn, map[string]float32{"style.safetensors": 0.8, "detail.safetensors": -0.4}, nil)
	none := withStrengths(t, c.conn, nil, nil)

	deploy(t, c.conn, &pb.Pin{Node: "a", Blocks: 3}, &pb.Pin{Node: "b", FirstBlock: 3, Blocks: 3})
	before := await(t, c.conn, "a plan without LoRAs", func(s *pb.DeploymentStatus) bool { return s.Ready && len(s.Plan.Loras) == 0 })
	if !bytes.Equal(withStrengths(t, c.conn, nil, nil), none) {
		t.Error("strength 0 gives other bits than no LoRA")
	}
	if err := c.ensure(style); err != nil {
		t.Fatal(err)
	}
	s := c.status()
	if l := s.Plan.Loras[0]; len(s.Plan.Loras) != 1 || !l.Brought || l.Layers != 3 || s.Plan.Epoch <= before.Plan.Epoch {
		t.Errorf("LoRAs %v at epoch %d after %d", s.Plan.Loras, s.Plan.Epoch, before.Plan.Epoch)
	}
	if !bytes.Equal(withStrengths(t, c.conn, map[string]float32{style: 0.8}, nil), one) {
		t.Error("by digest it gives other bits than as a file")
	}
	if !bytes.Equal(withStrengths(t, c.conn, nil, nil), none) {
		t.Error("a client that does not use it gets other bits")
	}
	if !bytes.Equal(withStrengths(t, c.conn, map[string]float32{style: 0.3}, map[string]float32{style: 0.8}), one) {
		t.Error("a step's strength gives other bits")
	}
	if err := c.ensure(style); err != nil || c.status().Plan.Epoch != s.Plan.Epoch {
		t.Errorf("what is there already makes a new plan (%v)", err)
	}
	if err := c.ensure(style, detail); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(withStrengths(t, c.conn, map[string]float32{style: 0.8, detail: -0.4}, nil), both) {
		t.Error("two by digest give other bits than two files")
	}

	t.Run("what is refused changes nothing", func(t *testing.T) { c.refused(t, style) })
	t.Run("restarts", func(t *testing.T) {
		epoch := c.status().Plan.Epoch
		c.co.stop()
		c.agents["b"].stop()
		if err := os.RemoveAll(filepath.Join(bConfig.DataDir, "patches")); err != nil {
			t.Fatal(err)
		}
		c.blobs = blobs{} // the clients' uploads may be gone
		c.start()
		c.agents["b"] = startAgentWith(c, "b", "", bConfig)
		s := await(c, c.conn, "b to come back", func(s *pb.DeploymentStatus) bool { return s.Ready && s.Plan.Epoch > epoch })
		if err := c.ensure(style, detail); err != nil || c.status().Plan.Epoch != s.Plan.Epoch {
			t.Errorf("after the restart: %v", err)
		}
		if !bytes.Equal(withStrengths(t, c.conn, map[string]float32{style: 0.8, detail: -0.4}, nil), both) {
			t.Error("the bits changed")
		}
	})
}

// refused brings what cannot be used.
func (c *bringing) refused(t *testing.T, sound string) {
	epoch := c.status().Plan.Epoch
	lie := strings.Repeat("0", 64)
	c.blobs[lie] = c.blobs[sound]
	pair := func(key string, up, down tensor.Shape) string {
		data := []safetensors.Data{
			safetensors.FromFloat32s("0.up", up, make([]float32, up[0]*up[1])), safetensors.FromFloat32s("0.down", down, make([]float32, down[0]*down[1])),
		}
		return c.write(t, []map[string]any{{"key": key, "type": "lora", "tensors": []string{"0.up", "0.down"}}}, data)
	}
	norm := c.write(t, []map[string]any{{"key": "double_blocks.0.img_attn.norm.key_norm.scale", "type": "diff", "tensors": []string{"0.diff"}}},
		[]safetensors.Data{safetensors.FromFloat32s("0.diff", tensor.Shape{32}, make([]float32, 32))})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("no safetensors"), 0o600); err != nil {
		t.Fatal(err)
	}
	noise := sha256.Sum256([]byte("no safetensors"))
	c.blobs[hex.EncodeToString(noise[:])] = file
	for want, digest := range map[string]string{
		"not those of the digest": lie,
		"blocks.7.weight":         pair("blocks.7.weight", tensor.Shape{64, 2}, tensor.Shape{2, 64}),
		"img_in.weight":           pair("img_in.weight", tensor.Shape{7, 2}, tensor.Shape{2, 64}),
		"key_norm":                norm,
		"safetensors":             hex.EncodeToString(noise[:]),
		"upload it first":         strings.Repeat("1", 64),
		"64 hexadecimal digits":   "../../etc/passwd",
	} {
		err := c.ensure(sound, digest)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), digest[:16]) {
			t.Errorf("%s: %v", want, err)
		} else if code := status.Code(err); code != codes.InvalidArgument && want != "upload it first" {
			t.Errorf("%s: code %v", want, code)
		}
	}
	many := []string{sound}
	for i := range lora.MaxUses {
		many = append(many, fmt.Sprintf("%064x", i))
	}
	if err := c.ensure(many...); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%d LoRAs: %v", len(many), err)
	}
	if err := c.loras.Ensure(t.Context(), "other", []string{sound}, c.file); status.Code(err) != codes.NotFound {
		t.Errorf("a deployment that is not there: %v", err)
	}
	if s := c.status(); s.Plan.Epoch != epoch {
		t.Errorf("the plan is of epoch %d, was %d", s.Plan.Epoch, epoch)
	}
	stranger := pb.NewPatchesClient(c.conn)
	stream, err := stranger.Fetch(t.Context(), &pb.FetchPatchesRequest{Digest: sound})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an operator fetched a client's file: %v", err)
	}
}

// An agent believes no coordinator: bytes of another digest fail the load, by
// name.
func TestLoRAThatChangedOnItsWay(t *testing.T) {
	c := &bringing{T: t, blobs: blobs{}, cfg: testConfig(t.TempDir()), agents: map[string]*process{}}
	c.start()
	cfg := testConfig(t.TempDir())
	c.agents["a"] = startAgentWith(t, "a", token(t, c.conn), cfg)
	style := c.add(t, filepath.Join(demoLoRA(t), "style.safetensors"))
	deploy(t, c.conn, &pb.Pin{Node: "a", Blocks: 6})
	c.status()
	if err := c.ensure(style); err != nil {
		t.Fatal(err)
	}
	c.agents["a"].stop()
	kept := filepath.Join(c.cfg.DataDir, "patches", "kept", style+".safetensors")
	raw, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := errors.Join(os.WriteFile(kept, raw, 0o600), os.RemoveAll(filepath.Join(cfg.DataDir, "patches"))); err != nil {
		t.Fatal(err)
	}
	c.agents["a"] = startAgentWith(t, "a", "", cfg)
	s := await(t, c.conn, "the load to fail", func(s *pb.DeploymentStatus) bool {
		return slices.ContainsFunc(s.Observed, func(o *pb.Observed) bool { return o.State == pb.Observed_FAILED }) || strings.Contains(s.Plan.GetInfeasible(), style)
	})
	if text := fmt.Sprint(s); !strings.Contains(text, style) {
		t.Errorf("it does not name the LoRA: %v", text)
	}
}

// Over HTTPS: a forward names an upload and a strength. Another strength needs
// no new plan; a run goes on while another client's LoRA makes one; an upload
// that is not there is asked for.
func TestLoRAsOverHTTPS(t *testing.T) {
	dir := demoLoRA(t)
	writeLoRA(t, filepath.Join(dir, "detail.safetensors"), 8, "single_blocks.2.linear2", "double_blocks.1.txt_mlp.0")
	c := &bringing{T: t, blobs: blobs{}, cfg: testConfig(t.TempDir()), agents: map[string]*process{}}
	c.start()
	startAgentWith(t, "a", token(t, c.conn), testConfig(t.TempDir()))
	style, detail := c.add(t, filepath.Join(dir, "style.safetensors")), c.add(t, filepath.Join(dir, "detail.safetensors"))
	w := newWebClient(t, c.conn, "comfy")
	w.json("PUT", "/v1/deployments/demo", demoSpec())
	w.json("GET", "/v1/deployments/demo?wait=60s", nil)
	cond, step := request(t, "large red circle on blue")
	tensors := slices.Concat(cond, step)
	forward := func(run, loras string) ([]float32, string) {
		t.Helper()
		out, answer, err := w.forward("demo", tensor.F32, map[string]string{"run": run, "loras": loras}, tensors...)
		if err != nil {
			t.Fatal(err)
		}
		return out, answer["epoch"]
	}
	use := func(digest string, strength float64) string {
		return fmt.Sprintf(`[{"digest":%q,"strength":%g}]`, digest, strength)
	}
	upload := func(digest string) {
		t.Helper()
		raw, err := os.ReadFile(c.blobs[digest])
		if err != nil {
			t.Fatal(err)
		}
		if code, out := w.do("PUT", "/v1/blobs/"+digest, raw); code != http.StatusCreated {
			t.Fatalf("blob: %d %s", code, out)
		}
	}
	plain, first := forward("r1", "[]")
	if _, _, err := w.forward("demo", tensor.F32, map[string]string{"run": "r2", "loras": use(style, 0.8)}, tensors...); err == nil || !strings.Contains(err.Error(), style) {
		t.Errorf("a LoRA that was not uploaded: %v", err)
	}
	upload(style)
	strong, second := forward("r2", use(style, 0.8))
	weak, third := forward("r2", use(style, 0.4))
	if second == first || third != second {
		t.Errorf("epochs %s, %s, %s", first, second, third)
	}
	if distance(strong, plain) < 1e-4 || distance(weak, plain) < 1e-4 || distance(weak, strong) < 1e-4 {
		t.Error("the strength changes nothing")
	}
	if again, epoch := forward("r1", "[]"); epoch != second || !slices.Equal(again, plain) {
		t.Errorf("a run that began before, without LoRAs: epoch %s, the same bits: %v", epoch, slices.Equal(again, plain))
	}
	upload(detail)
	if _, epoch := forward("r3", use(detail, 1)); epoch == second {
		t.Error("another LoRA made no new plan")
	}
	if again, _ := forward("r2", use(style, 0.8)); !slices.Equal(again, strong) {
		t.Error("the first client's run gives other bits beside another client's LoRA")
	}
	before := w.json("GET", "/v1/deployments/demo", nil)
	if n := len(before["loras"].([]any)); n != 2 {
		t.Errorf("%d LoRAs", n)
	}
	if after := w.json("PUT", "/v1/deployments/demo", demoSpec()); after["generation"] != before["generation"] {
		t.Error("the same spec again drops clients' LoRAs")
	}
	answer, err := pb.NewControlClient(c.conn).Deploy(t.Context(), &pb.DeployRequest{Spec: c.status().Spec})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(answer.Spec.Loras); n != 0 {
		t.Errorf("a spec that was read and sent again has %d LoRAs of clients", n)
	}
	if again, _ := forward("r2", use(style, 0.8)); !slices.Equal(again, strong) {
		t.Error("after another deploy: other bits")
	}
}

// A LoRA that a node cannot load is taken back, by name, and the deployment runs
// again without it.
func TestLoRAThatCannotBeLoaded(t *testing.T) {
	c := &bringing{T: t, blobs: blobs{}, cfg: testConfig(t.TempDir()), agents: map[string]*process{}}
	c.start()
	cfg := testConfig(t.TempDir())
	startAgentWith(t, "a", token(t, c.conn), cfg)
	style := c.add(t, filepath.Join(demoLoRA(t), "style.safetensors"))
	deploy(t, c.conn, &pb.Pin{Node: "a", Blocks: 6})
	c.status()
	want, _, err := picture(t, c.conn)
	if err != nil {
		t.Fatal(err)
	}
	fetched := filepath.Join(cfg.DataDir, "patches", "fetched")
	if err := errors.Join(os.RemoveAll(fetched), os.WriteFile(fetched, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := c.ensure(style); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), style) {
		t.Errorf("a LoRA that a node cannot keep: %v", err)
	}
	s := await(t, c.conn, "the plan without it", func(s *pb.DeploymentStatus) bool { return s.Ready && len(s.Plan.Loras) == 0 })
	if got, _, err := picture(t, c.conn); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the deployment at epoch %d afterwards: %v", s.Plan.Epoch, err)
	}
	if err := os.Remove(fetched); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(fetched, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.ensure(style); err != nil {
		t.Errorf("once it can: %v", err)
	}
}
