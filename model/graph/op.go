// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package graph

// OpSet numbers the set of operations and their meaning. A node that lacks the
// op set of a model is not used for it.
//
//	1  the first
//	2  attention takes a mask; dimensions, and with them values, may be empty
const OpSet = 2

// Op names an operation. Every operation computes in float32 inside (linear
// and attention as the numerics class says) and rounds its result once to the
// kind of its output value; no other rounding exists.
type Op string

// The operations. B, S, H, d are batch, sequence, heads and head size; "..."
// stands for any leading dimensions. A value with an extent of 0 is empty: a
// Step that makes nothing else is a view, and no Step reads one but an
// attention its mask.
const (
	// OpCast rounds or widens In[0] to the kind of Out[0].
	OpCast Op = "cast"
	// OpScale is Factor·x.
	OpScale Op = "scale"
	// OpTimestepEmbedding: In v [B] of any kind, f [n] f32 → f32 [B, 2n]:
	// cos(v·f_k) in 0..n-1, sin(v·f_k) in n..2n-1; v·f_k is rounded to f32.
	OpTimestepEmbedding Op = "timestep_embedding"
	// OpPatchify: x [B,C,h,w] → [B, ceil(h/p)·ceil(w/q), C·p·q] with Patch
	// (p,q): token = row·W'+column, feature = (c·p + py)·q + px. h and w are
	// padded at the bottom and right, circularly (with the first rows and columns).
	OpPatchify Op = "patchify"
	// OpUnpatchify is the inverse of patchify, cropped to the h and w of Out[0].
	OpUnpatchify Op = "unpatchify"
	// OpLinear: x [...,K], Weights W [N,K] and optionally b [N] → [...,N], x·Wᵀ + b.
	OpLinear Op = "linear"
	// OpLowRank is the first half of a low-rank change of a linear: x [...,K],
	// strength [L] f32, Weights down [R,K] → t [...,R] or [...,R+L]. Row j of down
	// belongs to strength l(j): the first Ranks[0] rows to strength 0, the next
	// Ranks[1] to strength 1, and so on; the ranks add up to R. t_j is
	// strength_l(j) · Σ_k x_k·down_jk, sum and product in f32, rounded once.
	// Where there are R+L, t_(R+l) is strength_l: what a change of the bias is
	// multiplied by.
	OpLowRank Op = "low_rank"
	// OpLowRankAdd is the second half: y [...,N], t [...,R], Weights up [M,R] →
	// [...,N]. Column First+m of the result is y's + Σ_j t_j·up_mj, for m below
	// M; the others are y's. The sum is accumulated in f32, y is added last, the
	// result is rounded once.
	OpLowRankAdd Op = "low_rank_add"
	// OpAdd is a + b, equal shapes.
	OpAdd Op = "add"
	// OpMul is a·b, equal shapes.
	OpMul Op = "mul"
	// OpSiLU is x·sigmoid(x).
	OpSiLU Op = "silu"
	// OpGELUTanh is GELU in its tanh form.
	OpGELUTanh Op = "gelu_tanh"
	// OpLayerNorm normalises the last dimension, biased variance, Eps; optional
	// Weights scale [D] and bias [D].
	OpLayerNorm Op = "layer_norm"
	// OpRMSNorm: x/√(mean x² + Eps), times optional Weights scale [D], over the
	// last dimension.
	OpRMSNorm Op = "rms_norm"
	// OpModulate: x [B,S,D], scale [B,D], shift [B,D] → x·(1+scale)+shift:
	// t = 1+scale is rounded to the kind, then one fused multiply-add.
	OpModulate Op = "modulate"
	// OpGatedAdd: x [B,S,D], gate [B,D], y [B,S,D] → x + gate·y. With Fused one
	// fused multiply-add; without, gate·y is rounded to the kind first.
	OpGatedAdd Op = "gated_add"
	// OpRoPE: x [B,S,H,d], cos [S,d/2], sin [S,d/2] f32 → adjacent pairs
	// (a,b) → (c·a - s·b, s·a + c·b).
	OpRoPE Op = "rope"
	// OpAttention: q [B,S,H,d], k, v [B,T,H,d] → [B,S,H,d],
	// softmax(Scale·q·kᵀ)·v per head, softmax in f32. Optionally In[3] is an
	// additive mask [M,S,T] of the compute kind, the same for all heads, M being
	// 0 or B: softmax(Scale·q·kᵀ + mask)·v, the sum in f32. With M = 0 there is
	// no mask, as without In[3]. -Inf hides a key; a row that hides every key
	// has no meaning.
	OpAttention Op = "attention"
	// OpConcat joins its inputs along Axis.
	OpConcat Op = "concat"
	// OpSplit cuts In[0] along Axis into Outs whose extents there are those of
	// their shapes.
	OpSplit Op = "split"
	// OpReshape gives the same elements, row-major, the shape of Out[0].
	OpReshape Op = "reshape"
	// OpTranspose permutes dimensions: Out dimension i is In dimension Perm[i].
	OpTranspose Op = "transpose"
	// OpAllReduce sums In[0] over the devices of a tensor-parallel group; valid
	// only in graphs made by the tensor-parallel rewrite, which no engine of op
	// set so far runs.
	OpAllReduce Op = "all_reduce"
)

// Attrs are the parameters of a Node; each operation uses those its
// description names, and the others must be zero.
type Attrs struct {
	Eps    float64  `json:"eps,omitempty"`
	Factor float64  `json:"factor,omitempty"`
	Scale  float64  `json:"scale,omitempty"`
	Axis   int      `json:"axis,omitempty"`
	Patch  [2]int64 `json:"patch,omitzero"`
	Perm   []int    `json:"perm,omitempty"`
	Fused  bool     `json:"fused,omitempty"`
	Ranks  []int    `json:"ranks,omitempty"`
	First  int64    `json:"first,omitempty"`
}
