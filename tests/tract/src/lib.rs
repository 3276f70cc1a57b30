//! A second opinion on exported models: `tests/agreement.rs`.
