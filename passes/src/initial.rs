//! Initial values of parameters. Those that are drawn need no memory until somebody asks for them.

use std::borrow::Cow;

use ndarray::{ArrayD, IxDyn};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal};

/// The initial value of one parameter.
#[derive(Clone, Debug)]
pub enum Initial {
    /// One number everywhere.
    Constant { dims: Vec<usize>, value: f32 },
    /// Normal(0, deviation), from a stream of its own.
    Drawn { dims: Vec<usize>, deviation: f32, stream: u64 },
    /// Taken from the backbone.
    Given(ArrayD<f32>),
}

impl Initial {
    pub fn dims(&self) -> &[usize] {
        match self {
            Initial::Constant { dims, .. } | Initial::Drawn { dims, .. } => dims,
            Initial::Given(value) => value.shape(),
        }
    }

    /// The value: the same at each call.
    ///
    /// # Panics
    /// When a deviation is negative or not finite: a slip of the caller's.
    pub fn value(&self) -> Cow<'_, ArrayD<f32>> {
        match self {
            Initial::Constant { dims, value } => Cow::Owned(ArrayD::from_elem(IxDyn(dims), *value)),
            Initial::Drawn { dims, deviation, stream } => {
                let mut rng = ChaCha8Rng::seed_from_u64(*stream);
                let normal = Normal::new(0.0, *deviation).expect("a deviation is finite and not negative");
                Cow::Owned(ArrayD::from_shape_simple_fn(IxDyn(dims), || normal.sample(&mut rng)))
            }
            Initial::Given(value) => Cow::Borrowed(value),
        }
    }
}
