//! Initial values of parameters. Those that are drawn need no memory until they are asked for.

use std::borrow::Cow;

use ndarray::{ArrayD, IxDyn};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, Uniform};

/// The initial value of one parameter.
#[derive(Clone, Debug)]
pub enum Initial {
    /// One number everywhere.
    Constant { dims: Vec<usize>, value: f32 },
    /// Drawn from a stream of its own.
    Drawn { dims: Vec<usize>, from: Drawn, stream: u64 },
    /// A matrix of zeros with ones at some places.
    Selection { dims: Vec<usize>, ones: Vec<[usize; 2]> },
    /// Taken from the backbone.
    Given(ArrayD<f32>),
}

/// The distribution of a drawn value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Drawn {
    /// N(0, deviation)
    Normal { deviation: f32 },
    /// U(-bound, bound)
    Uniform { bound: f32 },
}

impl Initial {
    pub fn dims(&self) -> &[usize] {
        match self {
            Initial::Constant { dims, .. } | Initial::Drawn { dims, .. } | Initial::Selection { dims, .. } => dims,
            Initial::Given(value) => value.shape(),
        }
    }

    /// The value: the same at each call.
    ///
    /// # Panics
    /// When a deviation or bound is negative or not finite: a mistake of the caller.
    pub fn value(&self) -> Cow<'_, ArrayD<f32>> {
        match self {
            Initial::Constant { dims, value } => Cow::Owned(ArrayD::from_elem(IxDyn(dims), *value)),
            Initial::Drawn { dims, from, stream } => {
                let mut rng = ChaCha8Rng::seed_from_u64(*stream);
                let shape = IxDyn(dims);
                Cow::Owned(match *from {
                    Drawn::Normal { deviation } => {
                        let normal = Normal::new(0.0, deviation).expect("a deviation is finite and not negative");
                        ArrayD::from_shape_simple_fn(shape, || normal.sample(&mut rng))
                    }
                    Drawn::Uniform { bound } => {
                        let uniform =
                            Uniform::new_inclusive(-bound, bound).expect("a bound is finite and not negative");
                        ArrayD::from_shape_simple_fn(shape, || uniform.sample(&mut rng))
                    }
                })
            }
            Initial::Selection { dims, ones } => {
                let mut value = ArrayD::zeros(IxDyn(dims));
                ones.iter().for_each(|place| value[&place[..]] = 1.0);
                Cow::Owned(value)
            }
            Initial::Given(value) => Cow::Borrowed(value),
        }
    }
}
