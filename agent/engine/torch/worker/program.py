# Copyright The distorch authors.
# SPDX-License-Identifier: Apache-2.0
"""A segment (model/graph.Segment) as straight-line Python.

compile() writes the source of one function: its outer half makes every view of bound memory once per binding, its inner
half is one PyTorch call per step. Values whose operation has no out= form rest in tensors of PyTorch's allocator as long
as they are used ("temporaries"); everything else lies in the arena, where its place says. The names in that source are
numbers; nothing that came over the wire is pasted into it but numbers that were checked.
"""

import math

import torch
import torch.nn.functional as F

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
ALIGN = 256  # of weights; products may choose their algorithm by it


def product(x, w):
    """x·wᵀ in float32, not rounded."""
    if x.dtype == torch.float32:
        return torch.mm(x, w.t())
    if x.is_cuda and WIDE:
        return torch.mm(x, w.t(), out_dtype=torch.float32)
    return torch.mm(x.to(torch.float32), w.t().to(torch.float32))


WIDE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 9)  # mm has out_dtype
TOOLS = {
    "product": product,
    "torch": torch, "addmm": torch.addmm, "mm": torch.mm, "layer_norm": F.layer_norm,
    "rms_norm": F.rms_norm, "sdpa": F.scaled_dot_product_attention, "mul": torch.mul, "add": torch.add,
    "addcmul": torch.addcmul, "gelu": torch._C._nn.gelu, "silu": torch._C._nn.silu, "complex": torch.complex,
    "as_complex": torch.view_as_complex, "f32": torch.float32, "cat": torch.cat, "pad": F.pad, "stack": torch.stack,
}  # fmt: skip


def up(n, to=ALIGN):
    return -(-n // to) * to


def clean(st):
    """A step with nothing but numbers in it."""
    out = {k: [int(n) for n in st.get(k) or []] for k in ("in", "out", "w")}
    if not st["op"].replace("_", "").isalpha():
        raise ValueError("an operation's name is off")
    return {**out, "op": st["op"], "a": st.get("a") or {}, "view": bool(st.get("view")), "inplace": [bool(b) for b in st.get("inplace") or []]}


class Value:
    def __init__(self, j):
        self.shape = [int(n) for n in j["s"]]
        self.dtype = DTYPES[j["d"]]
        self.space, self.index, self.offset = (int(n) for n in j["p"])
        self.strides = [int(n) for n in j["t"]]
        if len(self.strides) != len(self.shape) or min(self.shape + self.strides + [self.offset], default=0) < 0:
            raise ValueError("a value's shape, strides or offset are off")
        self.elements = math.prod(self.shape)
        self.bytes = self.elements * self.dtype.itemsize
        self.extent = 0  # bytes from its first element to the end of its last
        if self.elements:
            self.extent = (1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))) * self.dtype.itemsize
        self.temporary = False

    def rows(self):
        """Shape and strides as a matrix of rows, or None where the rows are not a fixed step apart."""
        n, step = 1, None
        for d in range(len(self.shape) - 2, -1, -1):
            if self.shape[d] == 1:
                continue
            if step is None:
                step = self.strides[d]
            elif self.strides[d] != step * n:
                return None
            n *= self.shape[d]
        k = self.shape[-1]
        return ((n, k), (k if step is None else step, 1))


class Program:
    def __init__(self, seg, device):
        self.device = device
        self.compute = DTYPES[seg["compute"]]
        self.values = [Value(v) for v in seg["values"]]
        self.inputs, self.constants, self.outputs = seg["inputs"], seg["constants"], seg["outputs"]
        self.arena = int(seg["arena"])
        self.weights, at = [], 0  # (shape, offset)
        for w in seg["weights"]:
            shape = [int(n) for n in w]
            self.weights.append((shape, at))
            at = up(at + math.prod(shape) * self.compute.itemsize)
        self.packed = at
        self.steps = [clean(st) for st in seg["steps"]]
        self.keep = bool(seg["kept"])
        self.pre, self.run, self.names, self.memo = [], [], 0, {}
        self.live, self.peak = {}, 0  # temporaries by id: bytes
        self.use = {}  # the last step that names a value
        for i, st in enumerate(self.steps):
            for v in st["in"] + st["out"]:
                self.use[v] = i
        self.users = {}
        for st in self.steps:
            for v in st["in"]:
                self.users.setdefault(v, []).append(st)
        for i, st in enumerate(self.steps):
            self.step(i, st)
        self.temp = up(self.peak, 512)
        self.source = self.text()
        scope = dict(TOOLS)
        exec(compile(self.source, "<segment>", "exec"), scope)  # noqa: S102: our own text
        self.make = scope["bind"]

    def text(self):
        used = sorted({v for st in self.steps for v in st["in"] + st["out"] if not self.values[v].temporary})
        lines = ["def bind(V, W, device):"]
        lines += [f" v{v} = V({v})" for v in used if self.values[v].elements]
        lines += [f" w{i} = W({i})" for i in range(len(self.weights))]
        lines += [" " + s for s in self.pre]
        lines += [" def run():"] + ["  " + s for s in self.run] + ["  return", " return run"]
        return "\n".join(lines)

    def bind(self, weights, arena, bound):
        """The function that runs the segment on these flat uint8 tensors."""
        spaces = {0: [arena], 1: bound[: len(self.inputs)]}
        spaces[2] = bound[len(self.inputs) : len(self.inputs) + len(self.constants)]
        spaces[3] = bound[len(self.inputs) + len(self.constants) :]

        def view(i):
            v = self.values[i]
            flat = spaces[v.space][v.index if v.space else 0]
            part = flat[v.offset : v.offset + v.extent].view(v.dtype)
            return torch.as_strided(part, v.shape, v.strides, part.storage_offset())

        def weight(i):
            shape, at = self.weights[i]
            return weights[at : at + math.prod(shape) * self.compute.itemsize].view(self.compute).view(shape)

        return self.make(view, weight, self.device.torch)

    # What follows writes source.

    def name(self, i):
        return f"t{i}" if self.values[i].temporary else f"v{i}"

    def emit(self, line):
        self.run.append(line)

    def derive(self, i, form):
        """An expression made of a value: once per binding for what is placed, once per run for a temporary."""
        text = form.replace("@", self.name(i))
        return text if self.values[i].temporary else self.fixed(text)

    def fixed(self, text):
        if text not in self.memo:
            self.names += 1
            self.memo[text] = f"p{self.names}"
            self.pre.append(f"p{self.names} = {text}")
        return self.memo[text]

    def strided(self, i, shape, strides):
        return self.derive(i, f"torch.as_strided(@, {tuple(shape)}, {tuple(strides)}, @.storage_offset())")

    def spend(self, i, n):
        """Counts n bytes that step i takes beside the temporaries that live then."""
        self.peak = max(self.peak, sum(self.live.values()) + n)

    def loose(self, i):
        """Whether a value may rest outside its place: nobody finds it there by the places of others."""
        if self.keep or i in self.outputs:
            return False
        for st in self.users.get(i, []):
            at = st["in"].index(i)
            if st["op"] == "concat" and (st["view"] or st["inplace"][at]):
                return False
            if st["view"] and not all(self.loose(o) for o in st["out"]):
                return False
        return True

    def result(self, i, out, expr, extra=0):
        """Gives a value that PyTorch allocates its home."""
        v = self.values[out]
        if self.loose(out):
            v.temporary = True
            self.spend(i, up(v.bytes, 512) + extra)
            self.live[out] = up(v.bytes, 512)
            self.emit(f"t{out} = {expr}")
        else:
            self.spend(i, up(v.bytes, 512) + extra)
            self.emit(f"v{out}.copy_({expr})")

    def step(self, i, st):
        op, ins, outs = st["op"], st["in"], st["out"]
        if st["view"]:
            self.views(st)
        elif all(self.values[o].elements for o in outs):
            getattr(self, "op_" + op, self.unknown)(i, st, st["a"], *([ins, outs] if op in ("concat", "split") else [*ins, *outs]))
        self.live = {v: n for v, n in self.live.items() if v not in self.use or self.last(v) > i}
        names = [f"t{v}" for v in sorted({*ins, *outs}) if self.values[v].temporary and self.use[v] <= i]
        if names:
            self.emit("del " + ", ".join(names))

    def last(self, i):
        """The last step that touches a value's memory, by its own name or by those of its views."""
        views = [o for st in self.users.get(i, []) if st["view"] for o in st["out"]]
        return max([self.use[i]] + [self.last(o) for o in views])

    def unknown(self, i, st, *_):
        raise ValueError(f"operation {st['op']} is not in the torch worker's op set")

    def views(self, st):
        src = st["in"][0]
        if st["op"] == "concat" or not self.values[src].temporary:
            return
        at = 0
        for o in st["out"]:
            v = self.values[o]
            v.temporary = True
            if st["op"] == "split":
                axis = int(st["a"].get("axis", 0))
                self.emit(f"t{o} = t{src}.narrow({axis}, {at}, {v.shape[axis]})")
                at += v.shape[axis]
            else:
                self.emit(f"t{o} = t{src}.reshape({tuple(v.shape)})")

    def op_linear(self, i, st, a, x, out):
        vo, w = self.values[out], st["w"]
        call = f"addmm(w{w[1]}, " if len(w) > 1 else "mm("
        call += f"{self.matrix(i, x)}, {self.fixed(f'w{w[0]}.t()')}"
        if vo.rows():
            self.emit(f"{call}, out={self.strided(out, *vo.rows())})")
        else:
            self.result(i, out, f"{call}).view({tuple(vo.shape)})")

    def matrix(self, i, x):
        """A value as a matrix of rows; a copy where they are not a fixed step apart."""
        v = self.values[x]
        if v.rows() and not v.temporary:
            return self.strided(x, *v.rows())
        self.spend(i, 0 if v.rows() else up(v.bytes, 512))
        return f"{self.name(x)}.reshape({(v.elements // v.shape[-1], v.shape[-1])})"

    def op_low_rank(self, i, st, a, x, strength, out):
        v, ranks = self.values[out], [int(n) for n in a["ranks"]]
        rows, columns = v.elements // v.shape[-1], sum(ranks)
        self.spend(i, up(4 * rows * columns, 512) + up(4 * self.values[x].elements, 512) + 1024)
        by = self.fixed(f"torch.tensor({[l for l, n in enumerate(ranks) for _ in range(n)]}, device=device)")
        part = self.derive(out, f"@.narrow(-1, 0, {columns})")
        shape = (*v.shape[:-1], columns)
        self.emit(f"{part}.copy_((product({self.matrix(i, x)}, w{st['w'][0]}) * {self.name(strength)}[{by}]).view({shape}))")
        if v.shape[-1] > columns:
            self.emit(f"{self.derive(out, f'@.narrow(-1, {columns}, {len(ranks)})')}.copy_({self.name(strength)})")

    def op_low_rank_add(self, i, st, a, y, t, out):
        vy, vo, w = self.values[y], self.values[out], st["w"][0]
        if (vy.space, vy.index, vy.offset) != (vo.space, vo.index, vo.offset) or vy.temporary:
            self.emit(f"v{out}.copy_({self.name(y)})")
        part = self.derive(out, f"@.narrow(-1, {int(a.get('first', 0))}, {self.weights[w][0][0]})")
        if vo.rows():
            (n, _), strides = vo.rows()
            part = self.fixed(f"torch.as_strided({part}, {(n, self.weights[w][0][0])}, {strides}, {part}.storage_offset())")
            self.emit(f"addmm({part}, {self.matrix(i, t)}, {self.fixed(f'w{w}.t()')}, out={part})")
        else:
            self.spend(i, 3 * up(4 * vo.elements, 512))
            self.emit(f"{part}.copy_(product({self.matrix(i, t)}, w{w}).view({part}.shape) + {part})")

    def op_attention(self, i, st, a, q, k, v, *rest):
        mask, out = (rest[0] if len(rest) == 2 else None), rest[-1]
        heads = [self.derive(x, "@.transpose(1, 2)") for x in (q, k, v)]
        vq, keys = self.values[q], self.values[k].shape[1]
        b, s, h, _ = vq.shape
        extra, given = 4 * b * h * s, "None"
        if mask is not None and self.values[mask].elements:
            m = self.values[mask]
            extra += up(m.bytes, 512)
            least = torch.finfo(m.dtype).min  # a sum of scores is finite
            given = f"{self.name(mask)}.clamp(min={least!r}).unsqueeze(1)"
        if self.device.attention(self.compute) == "math":
            extra += b * h * s * keys * (2 * 4 + vq.dtype.itemsize)
        call = f"sdpa({', '.join(heads)}, {given}, 0.0, False, scale={float(a.get('scale', 0))!r}).transpose(1, 2)"
        self.result(i, out, call, up(extra, 512))

    def norm(self, i, call, x, out, stats):
        v = self.values[x]
        row = v.shape[-1]
        extra = stats * 4 * (v.elements // row)
        if v.rows() is None or v.rows()[1][0] != row:
            extra += v.bytes  # made contiguous
        self.result(i, out, call, up(extra, 512))

    def op_layer_norm(self, i, st, a, x, out):
        w = [f"w{n}" for n in st["w"]] + ["None", "None"]
        self.norm(i, f"layer_norm({self.name(x)}, {(self.values[x].shape[-1],)}, {w[0]}, {w[1]}, {float(a.get('eps', 0))!r})", x, out, 2)

    def op_rms_norm(self, i, st, a, x, out):
        w = f"w{st['w'][0]}" if st["w"] else "None"
        self.norm(i, f"rms_norm({self.name(x)}, {(self.values[x].shape[-1],)}, {w}, {float(a.get('eps', 0))!r})", x, out, 1)

    def op_modulate(self, i, st, a, x, scale, shift, out):
        b = self.derive(shift, "@.unsqueeze(1)")
        self.emit(f"addcmul({b}, {self.name(x)}, add({self.name(scale)}, 1).unsqueeze(1), out=v{out})")
        self.spend(i, up(self.values[scale].bytes, 512))

    def op_gated_add(self, i, st, a, x, gate, y, out):
        g = self.derive(gate, "@.unsqueeze(1)")
        if a.get("fused"):
            self.emit(f"addcmul({self.name(x)}, {g}, {self.name(y)}, out=v{out})")
            return
        self.spend(i, up(self.values[y].bytes, 512))
        self.emit(f"add({self.name(x)}, mul({self.name(y)}, {g}), out=v{out})")

    def op_rope(self, i, st, a, x, cos, sin, out):
        v, o = self.values[x], self.values[out]
        b, s, h, d = v.shape
        split = f"({b}, {s}, {h}, {d // 2}, 2)"
        self.spend(i, up(4 * v.elements, 512) * (1 if self.device.complex else 3) + up(4 * s * d, 512))
        if not self.device.complex:
            self.emit(f"f = {self.name(x)}.to(f32).reshape{split}")
            self.emit(f"c, n = {self.name(cos)}.unsqueeze(1), {self.name(sin)}.unsqueeze(1)")
            self.emit("e, g = f[..., 0], f[..., 1]")
            self.emit(f"v{out}.copy_(stack((e * c - g * n, e * n + g * c), -1).reshape({tuple(o.shape)})); del f, c, n, e, g")
            return
        table = f"c{cos}_{sin}"
        if table not in self.memo:
            self.memo[table] = table
            self.emit(f"{table} = complex({self.name(cos)}, {self.name(sin)}).unsqueeze(1)")
            self.live[table] = up(4 * s * d, 512)
        if v.dtype == torch.float32 and not v.temporary and not any(n % 2 for t in (v, o) for n in [t.offset // 4, *t.strides[:3]]):
            views = [self.derive(t, f"as_complex(@.view{split})") for t in (x, out)]
            self.emit(f"mul({views[0]}, {table}, out={views[1]})")
            return
        self.emit(f"f = {self.name(x)}.to(f32, memory_format=torch.contiguous_format, copy=True)")
        self.emit(f"as_complex(f.view{split}).mul_({table})")
        self.emit(f"v{out}.copy_(f); del f")

    def op_timestep_embedding(self, i, st, a, v, f, out):
        self.emit(f"a = {self.name(v)}.to(f32).unsqueeze(1) * {self.name(f)}")
        self.emit(f"v{out}.copy_(cat((a.cos(), a.sin()), -1)); del a")
        self.spend(i, up(2 * self.values[out].bytes, 512))

    def op_patchify(self, i, st, a, x, out):
        (b, c, h, w), (p, q) = self.values[x].shape, a["patch"]
        rows, cols = -(-h // p), -(-w // q)
        text = self.name(x)
        if rows * p != h:
            text = f"cat(({text}, {text}[:, :, : {rows * p - h}]), 2)"
        if cols * q != w:
            self.emit(f"a = {text}")
            text = f"cat((a, a[..., : {cols * q - w}]), 3)"
        self.emit(f"a = {text}.reshape({b}, {c}, {rows}, {p}, {cols}, {q})")
        self.emit(f"v{out}.copy_(a.permute(0, 2, 4, 1, 3, 5).reshape({b}, {rows * cols}, {c * p * q})); del a")
        self.spend(i, up(3 * self.values[out].bytes, 512))

    def op_unpatchify(self, i, st, a, x, out):
        (b, c, h, w), (p, q) = self.values[out].shape, a["patch"]
        rows, cols = -(-h // p), -(-w // q)
        self.emit(f"a = {self.name(x)}.reshape({b}, {rows}, {cols}, {c}, {p}, {q}).permute(0, 3, 1, 4, 2, 5)")
        self.emit(f"v{out}.copy_(a.reshape({b}, {c}, {rows * p}, {cols * q})[:, :, :{h}, :{w}]); del a")
        self.spend(i, up(2 * self.values[x].bytes, 512))

    def op_cast(self, i, st, a, x, out):
        self.emit(f"v{out}.copy_({self.name(x)})")

    def op_transpose(self, i, st, a, x, out):
        self.emit(f"v{out}.copy_({self.derive(x, '@.permute' + str(tuple(int(n) for n in a['perm'])))})")

    def op_reshape(self, i, st, a, x, out):
        self.emit(f"v{out}.copy_({self.name(x)}.reshape({tuple(self.values[out].shape)}))")
        self.spend(i, up(self.values[x].bytes, 512))

    def op_concat(self, i, st, a, ins, outs):
        axis, at = int(a.get("axis", 0)), 0
        for x, inside in zip(ins, st["inplace"]):
            n = self.values[x].shape[axis]
            if not inside and self.values[x].elements:
                part = self.fixed(f"v{outs[0]}.narrow({axis}, {at}, {n})")
                self.emit(f"{part}.copy_({self.name(x)})")
            at += n

    def op_split(self, i, st, a, ins, outs):
        axis, at = int(a.get("axis", 0)), 0
        for o in outs:
            n = self.values[o].shape[axis]
            self.emit(f"v{o}.copy_({self.derive(ins[0], f'@.narrow({axis}, {at}, {n})')})")
            at += n

    def op_scale(self, i, st, a, x, out):
        self.emit(f"mul({self.name(x)}, {float(a.get('factor', 0))!r}, out=v{out})")

    def op_add(self, i, st, a, x, y, out):
        self.emit(f"add({self.name(x)}, {self.name(y)}, out=v{out})")

    def op_mul(self, i, st, a, x, y, out):
        self.emit(f"mul({self.name(x)}, {self.name(y)}, out=v{out})")

    def op_silu(self, i, st, a, x, out):
        self.emit(f"silu({self.name(x)}, out=v{out})")

    def op_gelu_tanh(self, i, st, a, x, out):
        self.emit(f"gelu({self.name(x)}, approximate='tanh', out=v{out})")
