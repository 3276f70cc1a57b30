//! What the integration tests share: ONNX Runtime.

use std::sync::OnceLock;

use lstc_runtime::install::{Request, install};
use lstc_runtime::{Device, Error, Flavour, Runtime, find};

/// ONNX Runtime on the CPU: a library that is there, or else one that `lstc runtime install` would fetch. Test processes
/// that run at the same time wait for one another's installation.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<&Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let library = match find(Device::Cpu) {
            // One without a record of what was installed is replaced.
            Err(Error::NotFound { .. } | Error::Untrusted { .. }) => {
                install(&Request::new(Flavour::Cpu), &mut |_| {}).expect("ONNX Runtime can be installed");
                find(Device::Cpu)
            }
            found => found,
        };
        Runtime::load(&library.expect("there is an ONNX Runtime library")).expect("ONNX Runtime loads")
    })
}
