//! Sessions: a model, made ready to run on a device.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use ort::ep;
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{OutputSelector, RunOptions};
use ort::value::{Outlet, ValueType};
use serde::{Deserialize, Serialize};

use super::cuda::Cuda;
use super::error::{Error, Result};
use super::loaded::Runtime;
use super::placement;
use super::tensor::{ElementType, Tensor};

/// What a session runs on; written as `cpu` or `cuda:0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    #[default]
    Cpu,
    /// The CUDA device of this index.
    Cuda(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Device, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", index)) => {
                index.parse().map(Device::Cuda).map_err(|_| format!("`{index}` is not the number of a CUDA device"))
            }
            _ => Err("expected `cpu`, `cuda` or a numbered device, as in `cuda:1`".to_owned()),
        }
    }
}

/// Whether ONNX Runtime may rewrite the graph before it runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimisation {
    /// Every node runs as written.
    Off,
    #[default]
    All,
}

/// The settings of a session, before its model is loaded.
#[derive(Clone, Debug)]
pub struct SessionBuilder<'r> {
    runtime: &'r Runtime,
    device: Device,
    optimisation: Optimisation,
    threads: Option<usize>,
    deterministic: bool,
    mapped: bool,
    tf32: bool,
    captures: bool,
}

impl<'r> SessionBuilder<'r> {
    pub(super) fn new(runtime: &'r Runtime) -> SessionBuilder<'r> {
        SessionBuilder {
            runtime,
            device: Device::default(),
            optimisation: Optimisation::default(),
            threads: None,
            deterministic: false,
            mapped: false,
            tf32: false,
            captures: false,
        }
    }

    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    pub fn optimisation(mut self, optimisation: Optimisation) -> Self {
        self.optimisation = optimisation;
        self
    }

    /// The number of threads that one operator may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Only kernels whose results repeat bit for bit from run to run.
    pub fn deterministic(mut self, deterministic: bool) -> Self {
        self.deterministic = deterministic;
        self
    }

    /// Weights are used in their mapped file, without a copy in the kernels' own layout.
    pub fn mapped(mut self, mapped: bool) -> Self {
        self.mapped = mapped;
        self
    }

    /// Products on CUDA may be computed in TF32, which uses 10 bits of the operands' mantissas.
    pub fn tf32(mut self, tf32: bool) -> Self {
        self.tf32 = tf32;
        self
    }

    /// On CUDA, runs may be captured as graphs and replayed: [`Binding::replay`](super::Binding::replay) says which. A model that
    /// cannot be captured is refused.
    pub fn captures(mut self, captures: bool) -> Self {
        self.captures = captures;
        self
    }

    /// Loads a model from its file; its external data is beside it, where the model says.
    pub fn open(self, path: &Path) -> Result<Session> {
        // ONNX Runtime distinguishes a missing file, but not one that cannot be read, from a broken model.
        lstc_graph::regular::open(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
        let model = format!("`{}`", path.display());
        let loaded = self.options()?.commit_from_file(path);
        self.session(loaded.map_err(|source| Error::model(model, source))?)
    }

    /// Loads a model from its bytes; `data` is the folder of its external data, if it has any.
    pub fn load(self, model: &[u8], data: Option<&Path>) -> Result<Session> {
        const DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";
        let mut options = self.options()?;
        if let Some(folder) = data {
            options = options.with_config_entry(DATA_FOLDER, folder.to_string_lossy()).map_err(refused)?;
        }
        let loaded = options.commit_from_memory(model);
        self.session(loaded.map_err(|source| Error::model("the model".to_owned(), source))?)
    }

    fn session(&self, session: ort::session::Session) -> Result<Session> {
        let cuda = match self.device {
            Device::Cpu => None,
            Device::Cuda(index) => Some(self.runtime.cuda(index)?),
        };
        let session = Session::new(session, (self.device, cuda), self.captures)?;
        if self.captures {
            session.reserve_pinned()?;
        }
        Ok(session)
    }

    fn options(&self) -> Result<ort::session::builder::SessionBuilder> {
        let level = match self.optimisation {
            Optimisation::Off => GraphOptimizationLevel::Disable,
            Optimisation::All => GraphOptimizationLevel::All,
        };
        let options = ort::session::Session::builder(self.runtime.environment());
        let options = options.map_err(|source| Error::Options { source })?;
        let options = options.with_log_level(LogLevel::Error).map_err(refused)?;
        let options = options.with_optimization_level(level).map_err(refused)?;
        let mut options = options.with_deterministic_compute(self.deterministic).map_err(refused)?;
        // A pattern is one block for all values of a run, which is more than is alive at once.
        options = options.with_memory_pattern(false).map_err(refused)?;
        options = options.with_env_allocators().map_err(refused)?;
        // The threads of a waiting session would take cores from the one that runs.
        options = options.with_config_entry("session.force_spinning_stop", "1").map_err(refused)?;
        if self.mapped {
            options = options.with_config_entry("session.disable_prepacking", "1").map_err(refused)?;
        }
        match self.device {
            Device::Cpu => match self.threads {
                Some(threads) => options.with_intra_threads(threads).map_err(refused),
                None => Ok(options),
            },
            Device::Cuda(index) => self.on_cuda(options, index),
        }
    }

    /// Adds the CUDA provider, as the only one beside the CPU's. A provider that cannot be used is an error.
    fn on_cuda(
        &self,
        options: ort::session::builder::SessionBuilder,
        index: u32,
    ) -> Result<ort::session::builder::SessionBuilder> {
        let device = self.runtime.cuda(index)?;
        // The CPU's part is the arithmetic of shapes.
        let options = options.with_intra_threads(1).map_err(refused)?;
        let options = options.with_config_entry(placement::RECORD, "1").map_err(refused)?;
        // One fuses a sum and a softmax into an operator that only cuDNN computes, the other keeps what was to be computed twice.
        let disabled = "BiasSoftmaxFusion;CommonSubexpressionElimination";
        let options = options.with_disabled_optimizers(disabled).map_err(refused)?;
        // Weights that are integers in the file are dequantised once.
        let options = options.with_config_entry("session.disable_quant_qdq", "1").map_err(refused)?;
        let number = i32::try_from(index).unwrap_or(i32::MAX);
        let provider = ep::CUDA::default().with_device_id(number).with_tf32(self.tf32).with_cuda_graph(self.captures);
        let provider = provider.with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested);
        // SAFETY: the stream lives as long as the process.
        let provider = unsafe { provider.with_compute_stream(device.stream()) };
        let added = options.with_execution_providers([provider.build().error_on_failure()]);
        added.map_err(|error| Error::device(index, error.into()))
    }
}

fn refused(error: ort::Error<ort::session::builder::SessionBuilder>) -> Error {
    Error::Options { source: error.into() }
}

/// One dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Known(usize),
    Symbol(String),
    Unknown,
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub element_type: ElementType,
    pub dims: Vec<Dim>,
}

impl Port {
    fn new(outlet: &Outlet) -> Result<Port> {
        let name = outlet.name().to_owned();
        let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
            return Err(Error::NotATensor { name, kind: outlet.dtype().to_string() });
        };
        let dims = shape.iter().zip(dimension_symbols.iter()).map(|(&size, symbol)| match usize::try_from(size) {
            Ok(size) => Dim::Known(size),
            Err(_) if symbol.is_empty() => Dim::Unknown,
            Err(_) => Dim::Symbol(symbol.clone()),
        });
        Ok(Port { name, element_type: *ty, dims: dims.collect() })
    }
}

/// A model that is ready to run.
#[derive(Debug)]
pub struct Session {
    pub(super) session: ort::session::Session,
    pub(super) device: Device,
    /// The device, if it is not the CPU.
    pub(super) cuda: Option<&'static Cuda>,
    pub(super) captures: bool,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Session {
    fn new(
        session: ort::session::Session,
        (device, cuda): (Device, Option<&'static Cuda>),
        captures: bool,
    ) -> Result<Session> {
        let inputs = session.inputs().iter().map(Port::new).collect::<Result<_>>()?;
        let outputs = session.outputs().iter().map(Port::new).collect::<Result<_>>()?;
        Ok(Session { session, device, cuda, captures, inputs, outputs })
    }

    /// The model's inputs, in its order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The model's outputs, in its order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// True if runs may be captured and replayed.
    pub fn captures(&self) -> bool {
        self.captures
    }

    /// True if the model has an input of this name.
    pub fn takes(&self, name: &str) -> bool {
        self.inputs.iter().any(|port| port.name == name)
    }

    /// Runs the model on named inputs and returns the named outputs, in the order requested. What no
    /// output needs is not computed.
    ///
    /// # Errors
    /// A name that the model does not have, an input of the wrong type, or whatever makes ONNX Runtime refuse the run: a
    /// missing input, a shape that does not fit, no memory.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)], outputs: &[&str]) -> Result<Vec<Tensor>> {
        let mut values = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            let port = find_port(&self.inputs, "input", name)?;
            if port.element_type != tensor.element_type() {
                return Err(Error::WrongType {
                    name: port.name.clone(),
                    expected: port.element_type,
                    found: tensor.element_type(),
                });
            }
            values.push((*name, tensor.to_input().map_err(Error::run)?));
        }
        let mut selected = OutputSelector::no_default();
        for name in outputs {
            find_port(&self.outputs, "output", name)?;
            selected = selected.with(*name);
        }
        if outputs.is_empty() {
            return Ok(Vec::new());
        }
        let options = RunOptions::new().map_err(Error::run)?.with_outputs(selected);
        let results = self.session.run_with_options(values, &options).map_err(Error::run)?;
        results.iter().map(|(name, value)| Tensor::from_output(name, &value)).collect()
    }
}

fn find_port<'p>(ports: &'p [Port], direction: &'static str, name: &str) -> Result<&'p Port> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| Error::NoSuchPort {
        direction,
        name: name.to_owned(),
        known: ports.iter().map(|port| format!("`{}`", port.name)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["", "gpu", "cpu:1", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(wrong.parse::<Device>().is_err(), "`{wrong}` is not a device");
        }
    }
}
