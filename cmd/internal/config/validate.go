// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distorch/distorch/internal/edits"
)

// Donation is what of memory may hold other nodes' blocks.
func (a *Agent) Donation(memory Bytes) (Bytes, error) {
	switch a.Donate {
	case "":
		return memory, nil
	case "none":
		return 0, nil
	}
	b, err := ParseBytes(a.Donate)
	if err != nil {
		return 0, fmt.Errorf("%w, or none", err)
	}
	return b, nil
}

// Validate reports every value that cannot be used, each with its key.
func (c *Config) Validate() error {
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	check("data_dir", notEmpty(c.DataDir))
	check("log.level", oneOf(c.Log.Level, "debug", "info", "warn", "error"))
	check("log.format", oneOf(c.Log.Format, "text", "json"))

	co := &c.Coordinator
	check("coordinator.listen", listenAddress(co.Listen))
	for _, a := range co.Advertise {
		check("coordinator.advertise", dialAddress(a))
	}
	check("coordinator.lease_ttl", between(co.LeaseTTL, 5*time.Second, 5*time.Minute))
	for _, e := range co.Etcd.Endpoints {
		check("coordinator.etcd.endpoints", endpoint(e))
	}
	check("coordinator.etcd.client_listen", listenAddress(co.Etcd.ClientListen))
	check("coordinator.etcd.cert_file", together(co.Etcd.CertFile, co.Etcd.KeyFile, "coordinator.etcd.key_file"))

	c.Comfy.check(check)
	a := &c.Agent
	check("agent.name", nodeName(a.Name))
	check("agent.listen", listenAddress(a.Listen))
	if a.Advertise != "" {
		check("agent.advertise", dialAddress(a.Advertise))
	}
	if a.Memory > 0 && a.Reserve >= a.Memory {
		check("agent.reserve", fmt.Errorf("%s leaves nothing of agent.memory %s", a.Reserve, a.Memory))
	}
	if give, err := a.Donation(a.Memory); err != nil {
		check("agent.donate", err)
	} else if a.Memory > 0 && give > a.Memory {
		check("agent.donate", fmt.Errorf("%s is more than agent.memory %s", give, a.Memory))
	}
	if a.Threads < 0 || a.Threads > 4096 {
		check("agent.threads", fmt.Errorf("%d: want 1 to 4096, or 0 to choose by the host", a.Threads))
	}
	check("agent.cpu_isa", oneOf(a.CPUISA, "", "auto", "avx512bf16", "avx512", "avx2", "generic"))
	check("agent.engine", oneOf(a.Engine, "auto", "native", "torch"))
	check("agent.torch.attention", oneOf(a.Torch.Attention, "", "auto", "flash", "efficient", "cudnn", "math"))
	check("agent.devices", a.devices())
	_, err := a.LabelMap()
	check("agent.labels", err)
	for _, dir := range c.Models.Dirs {
		check("models.dirs", notEmpty(dir))
	}

	t := &c.Transport
	check("transport.handshake_timeout", between(t.HandshakeTimeout, 100*time.Millisecond, 5*time.Minute))
	check("transport.redial_for", between(t.RedialFor, 0, time.Minute))
	// Agents send a sign of life every 250 ms.
	check("transport.silence_limit", between(t.SilenceLimit, 500*time.Millisecond, time.Minute))
	check("client.coordinator", dialAddress(c.Client.Coordinator))
	check("client.timeout", between(c.Client.Timeout, time.Millisecond, time.Hour))
	return errors.Join(errs...)
}

// Networks are those besides loopback whose clients the API answers.
func (c *Comfy) Networks() (out []netip.Prefix, err error) {
	for _, a := range c.Allow {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			ip, iperr := netip.ParseAddr(a)
			if iperr != nil {
				return nil, fmt.Errorf("%q: want a network such as 192.168.1.0/24, or an address", a)
			}
			p = netip.PrefixFrom(ip, ip.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func (c *Comfy) check(check func(key string, err error)) {
	_, err := c.Networks()
	check("comfy.allow", err)
	for _, o := range c.Origins {
		if u, err := url.Parse(o); o != "*" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "") {
			check("comfy.origins", fmt.Errorf("%q: want https://host:port, or *", o))
		}
	}
	if c.Storage < 100_000_000 {
		check("comfy.storage", fmt.Errorf("%s: want 100MB or more", c.Storage))
	}
	if c.Listen == "" {
		return
	}
	err = listenAddress(c.Listen)
	check("comfy.listen", err)
	host, _, _ := net.SplitHostPort(c.Listen) //nolint:errcheck // told above
	if ip, parsed := netip.ParseAddr(host); err == nil && host != "localhost" && (parsed != nil || !ip.IsLoopback()) && len(c.Allow) == 0 {
		check("comfy.listen", fmt.Errorf("%q: others reach this address, and ComfyUI's API knows no passwords; name the networks to trust in comfy.allow, or listen on 127.0.0.1", c.Listen))
	}
}

// LabelMap is the agent's labels by key.
func (a *Agent) LabelMap() (map[string]string, error) {
	labels := make(map[string]string, len(a.Labels))
	for _, l := range a.Labels {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q: want key=value", l)
		}
		if _, ok := labels[key]; ok {
			return nil, fmt.Errorf("%q is given twice", key)
		}
		labels[key] = value
	}
	return labels, nil
}

func notEmpty(s string) error {
	if strings.TrimSpace(s) == "" {
		return errors.New("must not be empty")
	}
	return nil
}

func oneOf(s string, allowed ...string) error {
	if slices.Contains(allowed, s) {
		return nil
	}
	allowed = slices.DeleteFunc(allowed, func(a string) bool { return a == "" })
	hint := ""
	if near := edits.Nearest(s, allowed); near != "" {
		hint = fmt.Sprintf(", did you mean %q?", near)
	}
	return fmt.Errorf("%q: want one of %s%s", s, strings.Join(allowed, ", "), hint)
}

func between(d, least, most time.Duration) error {
	if d < least || d > most {
		return fmt.Errorf("%s: want %s to %s", d, least, most)
	}
	return nil
}

func together(a, b, other string) error {
	if (a == "") != (b == "") {
		return fmt.Errorf("goes together with %s; give both or neither", other)
	}
	return nil
}

// listenAddress allows an empty host (every interface) and port 0 (a free one).
func listenAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q: want host:port, such as 127.0.0.1:7800", s)
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q: want an IP address of this host before the port", s)
		}
	}
	return portNumber(s, port, 0)
}

func dialAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("%q: want host:port, such as 192.168.1.10:7801", s)
	}
	return portNumber(s, port, 1)
}

func portNumber(address, port string, least uint64) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n < least {
		return fmt.Errorf("%q: want a port from %d to 65535", address, least)
	}
	return nil
}

func endpoint(s string) error {
	if strings.HasPrefix(s, "http://") {
		return fmt.Errorf("%q: etcd is spoken to over TLS only; use https://", s)
	}
	return dialAddress(strings.TrimPrefix(s, "https://"))
}

// nodeName is what certificates, tables and pins can carry.
func nodeName(s string) error {
	if s == "" || regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`).MatchString(s) {
		return nil
	}
	return fmt.Errorf("%q: want 1 to 63 letters, digits, dots, dashes or underscores, beginning and ending with a letter or digit", s)
}
