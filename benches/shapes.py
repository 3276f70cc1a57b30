"""The sizes that are measured: a T5 and the batch of one step."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Shape:
    """A T5 with ReLU and a tied head; weights are random, because speed and memory do not depend on them."""

    d_model: int
    d_kv: int
    d_ff: int
    heads: int
    layers: int  # of each tower
    vocabulary: int
    batch: int
    source: int  # tokens in
    target: int  # tokens out

    def to_json(self):
        return json.dumps(dataclasses.asdict(self))

    def __str__(self):
        return f"d {self.d_model}, {self.layers} + {self.layers} blocks, {self.batch} x {self.source} in, {self.target} out"


SHAPES = {
    "t5-base": Shape(768, 64, 3072, 12, 12, 32128, batch=8, source=128, target=8),
    "t5-small": Shape(512, 64, 2048, 8, 6, 32128, batch=16, source=64, target=8),
    "t5-nano": Shape(128, 32, 512, 4, 2, 4096, batch=64, source=32, target=4),
}

# A small T5 for how cost grows, by blocks of each tower.
GROWTH = {
    f"d256-{blocks}": Shape(256, 64, 1024, 4, blocks, 8192, batch=8, source=128, target=8) for blocks in (6, 12, 24, 48)
}
MODELS = SHAPES | GROWTH
