//! AdamW's moments, as a graph takes them.

use lstc_runtime::{Dim, Session};
use lstc_tuned::side::Side;
use ndarray::{ArrayD, IxDyn};

/// The moments that a graph takes, all zeros.
pub fn moments(session: &Session) -> Side {
    let size = |dim: &Dim| match dim {
        Dim::Known(size) => *size,
        other => panic!("a moment has a constant shape, not {other:?}"),
    };
    let moments = session.inputs().iter().filter(|port| port.name.starts_with("adam."));
    moments
        .map(|port| (port.name.clone(), ArrayD::zeros(IxDyn(&port.dims.iter().map(size).collect::<Vec<_>>()))))
        .collect()
}
