"""Writes the fixture of tests/gradients.rs beside this file: `python make.py` (needs torch and safetensors).

For each graph of the test, by `<rule>/<variant>`: the operands that it reads (`<graph>/<operand>`), the weights `c` that
its result is summed with where its variant does not end in `plain`, and, by torch.autograd in double precision, the
sum (`<graph>/loss`) and its gradients (`<graph>/<operand>.grad`). Operands are drawn in single precision, from a stream of
the graph's own: adding one does not change the others.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

B, S = 3, 5
F = torch.nn.functional


def normal(*shape):
    return lambda rng: rng.standard_normal(shape)


def positive(*shape):
    return lambda rng: rng.uniform(0.5, 2.0, shape)


def away(*shape):
    """Of either sign, not near 0: for kinks and denominators."""
    return lambda rng: rng.uniform(0.4, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def fixed(values, dtype=np.int64):
    return lambda rng: np.array(values, dtype)


def bools(*shape):
    return lambda rng: rng.random(shape) < 0.5


CASES = {}


def case(name, function, **operands):
    assert name not in CASES, name
    CASES[name] = (function, operands)


PAIRS = {
    "same": ((B, 4), (B, 4)),
    "row": ((B, 4), (4,)),
    "one element": ((B, 4), (1,)),
    "scalar": ((B, 4), ()),
    "scalar first": ((), (B, 4)),
    "both": ((B, 1, 4), (3, 1)),
    "sequence": ((B, S, 4), (S, 4)),
    "same, plain": ((B, 4), (B, 4)),
    "row, plain": ((B, 4), (4,)),
    "row first, plain": ((4,), (B, 4)),
    "both, plain": ((B, 1, 4), (3, 1)),
    "kept axis, plain": ((B, 1), (B, 4)),
}
for rule, function in {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}.items():
    for variant, (a, b) in PAIRS.items():
        case(f"{rule}/{variant}", function, a=normal(*a), b=away(*b))
case("Add/twice", lambda a: a + a, a=normal(B, 4))
case("Sub/twice", lambda a: a - a, a=normal(B, 4))
case("Mul/twice", lambda a: a * a, a=normal(B, 4))
case("Mul/twice, plain", lambda a: a * a, a=normal(B, 4))
case("Div/twice", lambda a: a / a, a=away(B, 4))
case("Sum/three", lambda a, b, d: a + b + d, a=normal(B, 4), b=normal(4), d=normal())
case("Sum/one", lambda a: a * 1, a=normal(B, 4))
case("Sum/twice", lambda a, b: a + b + a, a=normal(B, 1), b=normal(B, 4))
case("Sum/three, plain", lambda a, b, d: a + b + d, a=normal(B, 4), b=normal(4), d=normal())

WHERES = {
    "same": ((B, 4), (B, 4), (B, 4)),
    "row condition": ((4,), (B, 4), (B, 4)),
    "column condition": ((B, 1), (B, 4), (4,)),
    "scalars": ((B, 4), (), (1,)),
    "all broadcast": ((B, 1, 1), (S, 1), (4,)),
    "row condition, plain": ((4,), (4,), (B, 4)),
    "column condition, plain": ((B, 1), (B, 4), (4,)),
    "all broadcast, plain": ((B, 1, 1), (S, 1), (4,)),
}
for variant, (k, a, b) in WHERES.items():
    case(f"Where/{variant}", torch.where, k=bools(*k), a=normal(*a), b=normal(*b))

UNARY = {
    "Erf": (torch.erf, normal),
    "Exp": (torch.exp, normal),
    "Identity": (lambda x: x * 1, normal),
    "Neg": (torch.neg, normal),
    "Reciprocal": (torch.reciprocal, away),
    "Relu": (torch.relu, away),
    "Sigmoid": (torch.sigmoid, normal),
    "Sqrt": (torch.sqrt, positive),
    "Tanh": (torch.tanh, normal),
    "Cast": (torch.square, normal),
    "Dropout": (lambda x: x * 1, normal),
}
for rule, (function, draw) in UNARY.items():
    case(f"{rule}/matrix", function, x=draw(B, 4))
    case(f"{rule}/three axes", function, x=draw(B, S, 4))
    case(f"{rule}/matrix, plain", function, x=draw(B, 4))
    case(f"{rule}/scalar", function, x=draw())
case("Relu/at zero", torch.relu, x=fixed([[0.0, 1.0, -1.0, 0.5]], np.float32))
case("Identity/of the sum, plain", lambda x: x.sum(), x=normal(B, 4))

case("Gather/repeated rows", lambda t, i: t[i], t=normal(5, 4), i=fixed([[0, 2, 2], [4, 0, 2]]))
case("Gather/symbolic", lambda t, i: t[i], t=normal(5, 4), i=fixed([[0, 2, 2, 1, 1], [4, 0, 2, 0, 0], [3, 3, 3, 3, 3]]))
case("Gather/vector", lambda t, i: t[i], t=normal(5, 4), i=fixed([3, 0, 3]))
case("Gather/scalar", lambda t, i: t[i], t=normal(5, 4), i=fixed(2))
case("Gather/from the end", lambda t, i: t[i], t=normal(5, 4), i=fixed([-1, 0, -5]))
case("Gather/i32", lambda t, i: t[i], t=normal(5, 4), i=fixed([1, 3, 1], np.int32))
case("Gather/plain", lambda t, i: t[i], t=normal(5, 4), i=fixed([[0, 2, 2], [4, 0, 2]]))

pick = lambda x, i: torch.gather(x, 1, i.long() % x.shape[1])  # noqa: E731
for variant in ["axis 1", "last axis", "plain"]:
    case(f"GatherElements/{variant}", pick, x=normal(B, 5), i=fixed([[4], [0], [4]]))
case("GatherElements/from the end", pick, x=normal(B, 5), i=fixed([[-1], [2], [-5]]))
case("GatherElements/i32", pick, x=normal(B, 5), i=fixed([[4], [0], [4]], np.int32))

for ta in [0, 1]:
    for tb in [0, 1]:
        a, b = ((4, B) if ta else (B, 4)), ((2, 4) if tb else (4, 2))
        flip = lambda a, b, d, ta=ta, tb=tb: (a.T if ta else a) @ (b.T if tb else b) + d  # noqa: E731
        case(f"Gemm/{'t' if ta else 'n'}{'t' if tb else 'n'}, row bias", flip, a=normal(*a), b=normal(*b), d=normal(2))
linear = lambda a, b, d: a @ b + d  # noqa: E731
for variant, bias in {"scalar": (), "column": (B, 1), "matrix": (B, 2), "one element": (1,)}.items():
    case(f"Gemm/{variant} bias", linear, a=normal(B, 4), b=normal(4, 2), d=normal(*bias))
case("Gemm/no bias", lambda a, b: a @ b, a=normal(B, 4), b=normal(4, 2))
case("Gemm/row bias, plain", linear, a=normal(B, 4), b=normal(4, 2), d=normal(2))
case("Gemm/twice", lambda a: a @ a.T, a=normal(3, 4))

PRODUCTS = {
    "matrices": ((B, 4), (4, 2)),
    "batched": ((B, 2, 4), (B, 4, 3)),
    "matrix second": ((B, S, 4), (4, 2)),
    "matrix first": ((2, S), (B, S, 4)),
    "batch of one": ((B, 1, 2, 4), (2, 4, 3)),
    "both batches repeated": ((B, 1, 2, 4), (1, 2, 4, 3)),
    "batched, plain": ((B, 2, 4), (B, 4, 3)),
    "matrix second, plain": ((B, S, 4), (4, 2)),
}
for variant, (a, b) in PRODUCTS.items():
    case(f"MatMul/{variant}", torch.matmul, a=normal(*a), b=normal(*b))
case("MatMul/twice", lambda a: a @ a, a=normal(4, 4))
case("MatMul/first transposed", lambda a, b: a.mT @ b, a=normal(B, 4, S), b=normal(B, 4, 3))
case("MatMul/second transposed", lambda a, b: a @ b.mT, a=normal(B, S, 4), b=normal(B, 3, 4))
case("MatMul/both transposed, batch of one", lambda a, b: a.mT @ b.mT, a=normal(1, 4, S), b=normal(B, 3, 4))
case("MatMul/transposed, read twice", lambda a, b: a.mT @ b @ a.mT, a=normal(B, 4, 4), b=normal(B, 4, 4))

SUMS = {
    "all axes": ((0, 1, 2), False),
    "all axes, kept": ((0, 1, 2), True),
    "all axes by name": ((0, 1, 2), False),
    "empty axes": ((0, 1, 2), False),
    "middle": ((1,), False),
    "middle, kept": ((1,), True),
    "last": ((2,), False),
    "two": ((0, 2), False),
    "two, kept": ((0, 2), True),
    "two, unordered": ((0, 2), False),
    "middle, attribute": ((1,), False),
    "two, kept, attribute": ((0, 2), True),
    "middle, plain": ((1,), False),
    "two, kept, plain": ((0, 2), True),
}
for variant, (axes, kept) in SUMS.items():
    case(f"ReduceSum/{variant}", lambda x, axes=axes, kept=kept: x.sum(axes, kept), x=normal(B, S, 4))
case("ReduceSum/no axes, no sum", lambda x: x * 1, x=normal(B, 4))
case("ReduceSum/of the operand, plain", lambda y: y * 1, y=normal(B, 4))
case("ReduceSum/of a sum", lambda x: x.sum(1).sum(1), x=normal(B, S, 4))
case("ReduceSum/on one path of two", lambda x: x * x.sum(1, True), x=normal(B, 4))

case("Reshape/constant", lambda x: x.reshape(B, 2, 2), x=normal(B, 4))
case("Reshape/rows", lambda x: x.reshape(-1, 4), x=normal(B, S, 4))
case("Reshape/from rows", lambda x, like: x.reshape(B, S, 4), x=normal(B * S, 4), like=fixed(np.zeros((B, S))))
case("Reshape/there and back", lambda x: x.reshape(B, S, 4), x=normal(B, S, 4))
case("Reshape/copied axis", lambda x: x.reshape(B, -1), x=normal(B, S, 4))
case("Reshape/to a scalar", lambda x: x.reshape(()), x=normal(1, 1))
case("Reshape/rows, plain", lambda x: x.reshape(-1, 4), x=normal(B, S, 4))

case("Unsqueeze/first", lambda x: x[None], x=normal(B, 4))
case("Unsqueeze/last", lambda x: x[..., None], x=normal(B, 4))
case("Unsqueeze/two", lambda x: x[None, :, None, :], x=normal(B, 4))
case("Unsqueeze/attribute", lambda x: x[:, None], x=normal(B, S))
case("Unsqueeze/plain", lambda x: x[None], x=normal(B, S))

for rule, function in {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}.items():
    case(f"{rule}/last axis", lambda x, f=function: f(x, -1), x=normal(B, 4))
    case(f"{rule}/three axes", lambda x, f=function: f(x, -1), x=normal(B, S, 4))
    case(f"{rule}/middle axis", lambda x, f=function: f(x, 1), x=normal(B, S, 4))
    case(f"{rule}/large logits", lambda x, f=function: f(x, -1), x=lambda rng: 40 * rng.standard_normal((B, 4)))
case("LogSoftmax/last axis, plain", lambda x: torch.log_softmax(x, -1), x=normal(B, 4))
# A softmax sums to 1 whatever its operand: with equal weights its gradient is 0, so here one of them is squared.
case("Softmax/squared, plain", lambda x: torch.softmax(x, -1) ** 2, x=normal(B, 4))

case("Concat/rows", lambda a, b: torch.cat([a, b]), a=normal(2, 4), b=normal(1, 4))
case("Concat/columns", lambda a, b: torch.cat([a, b], -1), a=normal(B, 4), b=normal(B, 2))
case("Concat/twice, plain", lambda x: torch.cat([x, x], 1) ** 2, x=normal(B, 4))
case("Split/all parts", lambda x: x[:, :1] * x[:, 1:], x=normal(B, 4))
case("Split/a part unread", lambda x: x[:, 1:].exp(), x=normal(B, 4))
case("Split/attribute", lambda x: x[:, :1] * x[:, 1:], x=normal(B, 4))
case("Transpose/matrix", lambda x: x.T, x=normal(B, 4))
case("Transpose/perm 1 2 0", lambda x: x.permute(1, 2, 0), x=normal(B, S, 4))
case("Transpose/without perm", lambda x: x.permute(2, 1, 0), x=normal(B, S, 4))
case("Transpose/heads", lambda x: x.permute(0, 2, 1, 3), x=normal(B, S, 2, 3))
case("Transpose/matrix, plain", lambda x: x.T, x=normal(B, 4))
case("Transpose/without perm, plain", lambda x: x.permute(2, 1, 0), x=normal(B, S, 4))


def attention(x, q, k, v, table, i):
    heads = lambda w: (x @ w).reshape(B, S, 2, 3).permute(0, 2, 1, 3)  # noqa: E731
    scores = heads(q) @ heads(k).transpose(-1, -2) + table[i].permute(2, 0, 1)[None]
    return (torch.softmax(scores, -1) @ heads(v)).permute(0, 2, 1, 3).reshape(B * S, 6)


def norm(x, w):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w


def cross_entropy(x, labels):
    return F.cross_entropy(x, labels.reshape(-1), ignore_index=-100)


buckets = np.abs(np.arange(S)[:, None] - np.arange(S)[None])
case(
    "together/attention", attention, x=normal(B, S, 4), q=normal(4, 6), k=normal(4, 6), v=normal(4, 6),
    table=normal(6, 2), i=fixed(buckets),
)
case(
    "together/attention, queries last",
    lambda q, k, v, bias, mask: v @ torch.softmax(q.mT @ k + bias + mask, -1).mT,
    q=normal(B, 2, 3, S), k=normal(B, 2, 3, S), v=normal(B, 2, 3, S), bias=normal(1, 2, S, S),
    mask=lambda rng: np.where(rng.random((B, 1, 1, S)) < 0.3, np.finfo(np.float32).min, 0.0),
)
case("together/attention, plain", lambda s, v: torch.softmax(s, -1) @ v, s=normal(B, 2, S, S), v=normal(B, 2, S, 3))
case(
    "together/attention, queries last, plain", lambda s, v: v @ torch.softmax(s, -1).mT,
    s=normal(B, 2, S, S), v=normal(B, 2, 3, S),
)
case("together/norm", norm, x=normal(B, 4), w=positive(4))
case("together/norm by division", norm, x=normal(B, 4), w=positive(4))
case("together/norm by division, plain", norm, x=normal(B, 4), w=positive(4))
case("together/norm by division, of a residual stream", lambda x, w: x + norm(x, w), x=normal(B, 4), w=positive(4))
case("together/norm by division, one weight for all", norm, x=normal(B, 4), w=positive(1))
case("together/norm by division, read twice", lambda x, w: norm(x, 1.0) + norm(x, w), x=normal(B, 4), w=positive(4))
case("together/silu", F.silu, x=normal(B, 4))
case("together/gelu", F.gelu, x=normal(B, 4))
case("together/gelu of tanh", lambda x: F.gelu(x, approximate="tanh"), x=normal(B, 4))
case("together/ladder", lambda s, t, alpha: torch.sigmoid(alpha * 10) * s + (1 - torch.sigmoid(alpha * 10)) * t,
     s=normal(B, 4), t=normal(B, 4), alpha=lambda rng: 0.1 * rng.standard_normal(1))
case("together/cross-entropy, plain", cross_entropy, x=normal(6, 5), labels=fixed([[0, 4, -100], [2, 2, -100]]))


def main():
    tensors = {}
    for name, (function, operands) in CASES.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        drawn = {key: np.asarray(draw(rng)) for key, draw in operands.items()}
        drawn = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in drawn.items()}
        leaves = {k: torch.tensor(v.astype(np.float64) if v.dtype.kind == "f" else v) for k, v in drawn.items()}
        for leaf in leaves.values():
            leaf.requires_grad_(leaf.is_floating_point())
        result = function(*leaves.values())
        weighted = not name.endswith("plain")
        if weighted:
            drawn["c"] = rng.standard_normal(tuple(result.shape)).astype(np.float32)
            result = result * torch.tensor(drawn["c"].astype(np.float64))
        loss = result.sum()
        loss.backward()
        for key, value in drawn.items():
            tensors[f"{name}/{key}"] = value
        tensors[f"{name}/loss"] = loss.detach().numpy()
        for key, leaf in leaves.items():
            if leaf.requires_grad:
                tensors[f"{name}/{key}.grad"] = leaf.grad.numpy()
    path = Path(__file__).parent / "expected.safetensors"
    tensors = {key: np.array(value, order="C") for key, value in tensors.items()}
    save_file(tensors, path, {"torch": torch.__version__})
    print(f"{len(CASES)} graphs, {len(tensors)} tensors, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
