//! An activation in 8 bits, as its graph runs: `x` is about `scale (integers - zero)`.
//!
//! ```text
//! DynamicQuantizeLinear   scale = (max(x, 0) - min(x, 0)) / 255, the maximum and minimum over all elements
//! of x = Relu(h)          scale = max(h) / 255, zero = 0: integers = QuantizeLinear(h)
//! ```
//!
//! After a ReLU the minimum is 0 and the zero point with it, and what is below 0 before it is 0 in unsigned integers, which
//! saturate: the integers and the scale are the same without the ReLU, which is a pass over the widest values of a block. (A scale that
//! is not a normal number is the smallest one instead.)

use lstc_graph::{Attributes, Builder, DType, ValueId, Weight};

/// An activation in unsigned integers.
#[derive(Clone, Copy, Debug)]
pub struct Activation {
    pub integers: ValueId,
    pub scale: ValueId,
    pub zero: ValueId,
}

impl Activation {
    pub fn of(b: &Builder, x: ValueId) -> Activation {
        let before_relu = b.read(|graph| {
            let node = graph.node(graph.producer_of(x)?.0);
            let h = node.input(0).filter(|_| node.is("Relu"))?;
            (graph.value(h).dtype == Some(DType::F32)).then_some(h)
        });
        match before_relu {
            Some(h) => Activation::saturated(b, h),
            None => {
                let made = b.op_n("DynamicQuantizeLinear", &[b.cast(x, DType::F32)], Attributes::none(), 3);
                Activation { integers: made[0], scale: made[1], zero: made[2] }
            }
        }
    }

    /// `Relu(h)`
    fn saturated(b: &Builder, h: ValueId) -> Activation {
        let largest = b.reduce_max(h, &[], false);
        // Where nothing is above 0, any scale above 0 makes zeros.
        let scale = b.op("Max", &[b.div(largest, b.f32(255.0)), b.f32(f32::MIN_POSITIVE)], Attributes::none());
        let zero = b.constant(Weight::new(DType::U8, Vec::new(), vec![0].into(), None).expect("one byte is a scalar"));
        let integers = b.op("QuantizeLinear", &[h, scale, zero], Attributes::none());
        Activation { integers, scale, zero }
    }
}
