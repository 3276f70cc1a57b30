//! Declares the side network: every trainable tensor becomes an input of the graph under its name.
//!
//! Requires: a plan. Ensures: one trainable input a planned parameter, in the plan's order.

use lstc_graph::{DType, Dim, Role};

use crate::module::{Module, Parameter};
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct SideStack;

impl Pass for SideStack {
    fn name(&self) -> &'static str {
        "side-stack"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        for planned in &module.plan.parameters {
            let shape: Vec<Dim> = planned.dims.iter().map(|&d| Dim::Value(d as i32)).collect();
            match module.graph.add_input(&planned.name, DType::F32, &shape, Role::Trainable) {
                Ok(value) => module.parameters.push(Parameter {
                    key: planned.key,
                    name: planned.name.clone(),
                    dims: planned.dims.clone(),
                    group: planned.group,
                    value,
                    gradient: None,
                }),
                Err(reason) => problems.push(Problem::model(reason)),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}
