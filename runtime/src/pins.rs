//! The wheels that `lstc runtime install` accepts: nothing else is unpacked unless the user insists.
//!
//! The digests are those that the package index publishes for these files. NVIDIA's libraries are the ones of CUDA
//! 13.0.2, which the pinned ONNX Runtime was built with.

use std::fmt;

use super::library::Version;

/// Which build of ONNX Runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    Cpu,
    Cuda,
}

impl Flavour {
    pub const ALL: [Flavour; 2] = [Flavour::Cpu, Flavour::Cuda];

    /// The version that is pinned.
    pub fn version(self) -> Version {
        match self {
            Flavour::Cpu => Version { major: 1, minor: 32, patch: 0 },
            Flavour::Cuda => Version { major: 1, minor: 31, patch: 1 },
        }
    }

    /// The packages of an installation, ONNX Runtime's own first.
    pub(super) fn packages(self) -> &'static [Package] {
        match self {
            Flavour::Cpu => &[ONNXRUNTIME],
            Flavour::Cuda => &[ONNXRUNTIME_GPU, CUBLAS, CUDA_RUNTIME, CURAND, NVRTC],
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Cpu => "cpu",
            Flavour::Cuda => "cuda",
        })
    }
}

/// Libraries that CUDA's provider loads only for some models: an installation does not include them.
const NOT_INSTALLED: [(&str, &str); 2] = [("libcudnn", "nvidia-cudnn-cu13"), ("libcufft", "nvidia-cufft")];

/// The Python package that provides a shared library of CUDA's, and whether `lstc runtime install --cuda` installs it.
pub(super) fn brought_by(library: &str) -> Option<(&'static str, bool)> {
    let brings = |package: &&Package| package.wanted.iter().any(|start| library.starts_with(start));
    let installed = Flavour::Cuda.packages().iter().find(brings).map(|package| (package.name, true));
    let others = || NOT_INSTALLED.iter().find(|(start, _)| library.starts_with(start)).map(|(_, name)| (*name, false));
    installed.or_else(others)
}

/// A package at its pinned version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub name: &'static str,
    pub version: &'static str,
    /// The directory inside its wheels that the shared libraries lie in.
    pub libraries: &'static str,
    /// The shared libraries that are unpacked from there: those whose names start with one of these.
    pub wanted: &'static [&'static str],
    /// Its wheels; of those for one machine, the first is downloaded, and all hold the same libraries.
    pub wheels: &'static [Pin],
}

impl Package {
    /// The wheel to download for a machine such as `x86_64`.
    pub fn wheel(&self, machine: &str) -> Option<&'static Pin> {
        self.wheels.iter().find(|pin| pin.machine() == machine)
    }

    /// Whether a file of this name could be a wheel of this package, of any version.
    pub fn has_wheel_named(&self, file: &str) -> bool {
        file.split_once('-').is_some_and(|(distribution, _)| distribution.replace('_', "-") == self.name)
    }
}

/// A wheel: its file name and its SHA-256 in hexadecimal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pin {
    pub file: &'static str,
    pub sha256: &'static str,
}

impl Pin {
    /// The platform tag that pip is asked for, as in `manylinux_2_28_x86_64`.
    pub fn platform(&self) -> &'static str {
        let tags = self.file.trim_end_matches(".whl").rsplit('-').next().unwrap_or_default();
        tags.split('.').next().unwrap_or_default()
    }

    pub fn machine(&self) -> &'static str {
        if self.platform().ends_with("aarch64") { "aarch64" } else { "x86_64" }
    }
}

const fn pin(file: &'static str, sha256: &'static str) -> Pin {
    Pin { file, sha256 }
}

const ONNXRUNTIME: Package = Package {
    name: "onnxruntime",
    version: "1.32.0",
    libraries: "onnxruntime/capi/",
    wanted: &["libonnxruntime.so", "libonnxruntime_providers_shared.so"],
    wheels: &[
        pin(
            "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        ),
        pin(
            "onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_x86_64.whl",
            "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
        ),
        pin(
            "onnxruntime-1.32.0-cp313-cp313-manylinux_2_28_x86_64.whl",
            "02ea12a28c069ea8510093d95a7f6ff8126bfd9fc5c0d3381c03b80fb2b424ba",
        ),
        pin(
            "onnxruntime-1.32.0-cp314-cp314-manylinux_2_28_x86_64.whl",
            "48b878f9551d465aa79ee94ecaf49a1f6b5d27f2975efa775ded374db14d0af1",
        ),
        pin(
            "onnxruntime-1.32.0-cp314-cp314t-manylinux_2_28_x86_64.whl",
            "b224d11cfaecc95b85bdbd69f1673a984c7879af5823bb3ff377b9cb90b176fc",
        ),
        pin(
            "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl",
            "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
        ),
        pin(
            "onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_aarch64.whl",
            "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
        ),
        pin(
            "onnxruntime-1.32.0-cp313-cp313-manylinux_2_28_aarch64.whl",
            "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79",
        ),
        pin(
            "onnxruntime-1.32.0-cp314-cp314-manylinux_2_28_aarch64.whl",
            "4135431395c1f37de0811f452c20a8b774f51812fda6c49611ed9899bbdbeeb4",
        ),
        pin(
            "onnxruntime-1.32.0-cp314-cp314t-manylinux_2_28_aarch64.whl",
            "2c4338c899144fd055a86c1d89424001db60e48a474e198c0fd0d1d577e4b663",
        ),
    ],
};

const ONNXRUNTIME_GPU: Package = Package {
    name: "onnxruntime-gpu",
    version: "1.31.1",
    libraries: "onnxruntime/capi/",
    wanted: &["libonnxruntime.so", "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"],
    wheels: &[
        pin(
            "onnxruntime_gpu-1.31.1-cp311-cp311-manylinux_2_28_x86_64.whl",
            "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
        ),
        pin(
            "onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl",
            "05d548956197b9d01f59b625de740e0d6be3593f874e241a12dc0362650ecdf7",
        ),
        pin(
            "onnxruntime_gpu-1.31.1-cp313-cp313-manylinux_2_28_x86_64.whl",
            "f659529e07c21ec6b6179fd1bfaf82ffb7c3dc9c0916e18f6f313f9a690891be",
        ),
        pin(
            "onnxruntime_gpu-1.31.1-cp314-cp314-manylinux_2_28_x86_64.whl",
            "52a9ec263f331678e8fcb4f71a6fa44e5f901f0aac0b61fbe5a61517f2b4cc7d",
        ),
    ],
};

const CUBLAS: Package = Package {
    name: "nvidia-cublas",
    version: "13.1.0.3",
    libraries: "nvidia/cu13/lib/",
    wanted: &["libcublas.so", "libcublasLt.so"],
    wheels: &[pin(
        "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl",
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
    )],
};

const CUDA_RUNTIME: Package = Package {
    name: "nvidia-cuda-runtime",
    version: "13.0.96",
    libraries: "nvidia/cu13/lib/",
    wanted: &["libcudart.so"],
    wheels: &[pin(
        "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    )],
};

const CURAND: Package = Package {
    name: "nvidia-curand",
    version: "10.4.0.35",
    libraries: "nvidia/cu13/lib/",
    wanted: &["libcurand.so"],
    wheels: &[pin(
        "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
    )],
};

/// cuBLAS names it as a dependency.
const NVRTC: Package = Package {
    name: "nvidia-cuda-nvrtc",
    version: "13.0.88",
    libraries: "nvidia/cu13/lib/",
    wanted: &["libnvrtc.so", "libnvrtc-builtins.so"],
    wheels: &[pin(
        "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    )],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_a_wheel_of_its_package_and_version() {
        for package in [Flavour::Cpu, Flavour::Cuda].into_iter().flat_map(Flavour::packages) {
            for pin in package.wheels {
                let start = format!("{}-{}-", package.name.replace('-', "_"), package.version);
                assert!(pin.file.starts_with(&start) && pin.file.ends_with(".whl"), "{}", pin.file);
                assert!(package.has_wheel_named(pin.file), "{}", pin.file);
                assert!(pin.sha256.len() == 64 && pin.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{}", pin.file);
                assert!(pin.platform().starts_with("manylinux"), "{}", pin.file);
            }
            assert!(package.wheel("x86_64").is_some(), "{}", package.name);
        }
    }

    #[test]
    fn libraries_are_brought_by_packages() {
        assert_eq!(brought_by("libcublasLt.so.13"), Some(("nvidia-cublas", true)));
        assert_eq!(brought_by("libcudart.so.13"), Some(("nvidia-cuda-runtime", true)));
        assert_eq!(brought_by("libcudnn.so.9"), Some(("nvidia-cudnn-cu13", false)));
        assert_eq!(brought_by("libc.so.6"), None);
    }

    #[test]
    fn versions_agree() {
        for flavour in [Flavour::Cpu, Flavour::Cuda] {
            assert_eq!(flavour.packages()[0].version, flavour.version().to_string());
        }
    }
}
