//! What the integration tests share: ONNX Runtime.

use std::sync::OnceLock;

use lstc::runtime::install::{Request, install};
use lstc::runtime::{Device, Dim, Error, Flavour, Runtime, Session, find};
use lstc::side::Side;
use ndarray::{ArrayD, IxDyn};

/// ONNX Runtime on the CPU: a library that is there, or else one that `lstc runtime install` would fetch. Test processes
/// that run at the same time wait for one another's installation.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<&Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let library = match find(Device::Cpu) {
            Err(Error::NotFound { .. }) => {
                install(&Request::new(Flavour::Cpu), &mut |_| {}).expect("ONNX Runtime can be installed");
                find(Device::Cpu)
            }
            found => found,
        };
        Runtime::load(&library.expect("there is an ONNX Runtime library")).expect("ONNX Runtime loads")
    })
}

/// The moments that a graph takes, all zeros.
#[allow(dead_code)] // not every test trains
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
