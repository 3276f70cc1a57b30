//! How far correct results may lie apart, by the arithmetic of the backbone.

use lstc_graph::{DType, Graph, ValueId};
use lstc_models::{Frozen, Linear, Sublayer};
use lstc_passes::Module;

/// The arithmetic of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Single,
    /// Matrices, and with them the constants of activations and norms, are rounded to bf16; the rest is f32.
    Coarse,
    /// Every f16 value is rounded to 11 bits. ONNX Runtime's CPU kernels compute in f32 between casts, and leave a
    /// cast out where nothing else reads a value: what is rounded differs from graph to graph.
    Half,
    /// Activations are rounded to 8 bits or less before each product, over the range of a whole tensor.
    Quantised,
    /// The same over a range fixed in advance: values outside are clipped.
    Calibrated,
}

/// The error of a block by rounding to f16, relative to the largest element.
const HALF: f64 = 5e-3;
/// The same for 8 bits. A misread model is off by as much as the values themselves.
const QUANTISED: f64 = 1e-1;
const CALIBRATED: f64 = 5e-1;

impl Arithmetic {
    pub(super) fn of(module: &Module) -> Arithmetic {
        let blocks = module.anatomy.towers.iter().flat_map(|t| &t.blocks);
        let matrices: Vec<&Linear> =
            blocks.flat_map(|b| &b.sublayers).flat_map(Sublayer::linears).map(|(_, linear)| linear).collect();
        let is = |found: &dyn Fn(&Frozen) -> bool| matrices.iter().any(|l| found(whole(&l.weight)));
        let of_type = |f: &Frozen, dtype: DType| {
            f.value().and_then(|v| module.graph.weight(v)).is_some_and(|w| w.dtype() == dtype)
        };
        // As it was before lstc quantised anything.
        let source = module.unquantised();
        let calibrated = |id| ["QuantizeLinear", "QLinearMatMul"].iter().any(|op| source.node(id).is(op));
        if source.ancestors([module.anatomy.head.logits]).into_iter().any(calibrated) {
            Arithmetic::Calibrated
        } else if matrices.iter().any(|l| l.weight.quantised().is_some()) {
            Arithmetic::Quantised
        } else if is(&|f: &Frozen| of_type(f, DType::BF16)) {
            Arithmetic::Coarse
        } else if is(&|f: &Frozen| of_type(f, DType::F16)) || is_half(source, module.anatomy.head.logits) {
            Arithmetic::Half
        } else {
            Arithmetic::Single
        }
    }

    /// The allowed difference between a result and the same in f32, whose own error is `single`.
    pub(super) fn bound(self, single: f64) -> f64 {
        match self {
            Arithmetic::Single => single,
            Arithmetic::Half | Arithmetic::Coarse => single.max(HALF),
            Arithmetic::Quantised => single.max(QUANTISED),
            Arithmetic::Calibrated => single.max(CALIBRATED),
        }
    }

    /// Whether the same nodes give the same bits, whatever else reads them.
    pub(super) fn is_repeatable(self) -> bool {
        self != Arithmetic::Half
    }
}

/// True where a value on the way to another is rounded to f16.
fn is_half(graph: &Graph, value: ValueId) -> bool {
    let makes_half = |id| graph.node(id).outputs.iter().flatten().any(|v| graph.value(*v).dtype == Some(DType::F16));
    graph.ancestors([value]).into_iter().any(makes_half)
}

fn whole(frozen: &Frozen) -> &Frozen {
    match frozen {
        Frozen::Part(part) => whole(&part.whole),
        other => other,
    }
}
