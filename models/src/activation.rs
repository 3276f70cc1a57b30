//! Activations in the spellings that exporters use.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

use lstc_graph::{MICROSOFT, ValueId};

use crate::anatomy::Activation;
use crate::matcher::{Match, Matcher, Mismatch};

impl Matcher<'_> {
    /// `y = f(x)`: f and x.
    pub fn activation(&self, value: ValueId) -> Match<(Activation, ValueId)> {
        self.trying("activation", value, || self.activation_at(value))
    }

    fn activation_at(&self, value: ValueId) -> Match<(Activation, ValueId)> {
        let Some((id, node)) = self.node(value) else {
            let found = self.source_of(value);
            let reason = format!("is {found}, where an activation was expected");
            return Err(Mismatch::at(&self.graph.value(value).name, reason));
        };
        let of_runtime = node.domain == MICROSOFT && node.input(1).is_none();
        match node.op.as_str() {
            "Gelu" | "FastGelu" if of_runtime => {
                self.claim(id);
                let activation = if node.op == "Gelu" { Activation::GeluErf } else { Activation::GeluTanh };
                Ok((activation, self.resolve(self.operand(node, 0)?)))
            }
            _ if !node.is_default_domain() => {
                Err(self.mismatch(node, format!("computes {}, an activation that lstc does not know", node.kind())))
            }
            "Relu" => {
                self.claim(id);
                Ok((Activation::Relu, self.resolve(self.operand(node, 0)?)))
            }
            "Gelu" => {
                self.claim(id);
                let tanh = node.attributes.get_str("approximate") == Some("tanh");
                let activation = if tanh { Activation::GeluTanh } else { Activation::GeluErf };
                Ok((activation, self.resolve(self.operand(node, 0)?)))
            }
            "Mul" | "Div" => self.spelled(value),
            other => {
                let known = "Relu, Gelu (erf or tanh), Silu";
                Err(self.mismatch(
                    node,
                    format!("computes {other}, an activation that lstc does not know (it knows {known})"),
                ))
            }
        }
    }

    /// An activation written as a product.
    fn spelled(&self, value: ValueId) -> Match<(Activation, ValueId)> {
        let node = self.expect(value, &["Mul", "Div"])?;
        let (factors, constant) = self.product(value);
        let [a, b] = factors[..] else {
            return Err(self.mismatch(node, "is a product, but not an activation that lstc knows"));
        };
        for (x, gate) in [(a, b), (b, a)] {
            let Some((id, gate_node)) = self.node(gate) else { continue };
            match gate_node.op.as_str() {
                "Sigmoid" if gate_node.input(0).map(|v| self.resolve(v)) == Some(x) => {
                    self.claim(id);
                    return if self.close(constant, 1.0) {
                        Ok((Activation::Silu, x))
                    } else {
                        Err(self.mismatch(node, format!("computes a SiLU whose factor is {constant}, not 1")))
                    };
                }
                "Add" => {
                    if let Ok((one, curve)) = self.attempt(|| self.plus_constant(gate))
                        && let Some((_, curve_node)) = self.node(curve)
                        && (curve_node.is("Erf") || curve_node.is("Tanh"))
                    {
                        if !self.close(one, 1.0) || !self.close(constant, 0.5) {
                            let reason =
                                format!("computes a GELU whose constants are {constant} and {one}, not 0.5 and 1");
                            return Err(self.mismatch(node, reason));
                        }
                        return self.gelu(x, curve);
                    }
                }
                _ => {}
            }
        }
        Err(self.mismatch(node, "is a product, but not an activation that lstc knows"))
    }

    /// The curve of a GELU at x: `erf(x / sqrt 2)` or `tanh(sqrt(2/pi) (x + 0.044715 x^3))`.
    fn gelu(&self, x: ValueId, curve: ValueId) -> Match<(Activation, ValueId)> {
        let node = self.expect(curve, &["Erf", "Tanh"])?;
        let (inner, scale) = self.product(self.operand(node, 0)?);
        let [inner] = inner[..] else {
            return Err(self.mismatch(node, "computes a GELU of more than one value"));
        };
        if node.is("Erf") {
            if inner != x {
                return Err(self.mismatch(node, "computes a GELU whose two operands differ"));
            }
            if !self.close(scale, FRAC_1_SQRT_2) {
                let reason = format!("computes a GELU whose inner scale is 1/{:.5}, not 1/{SQRT_2:.5}", 1.0 / scale);
                return Err(self.mismatch(node, reason));
            }
            return Ok((Activation::GeluErf, x));
        }
        let wanted = FRAC_2_SQRT_PI * FRAC_1_SQRT_2; // sqrt(2/pi)
        if !self.close(scale, wanted) {
            let reason = format!("computes a tanh-GELU whose inner scale is {scale:.5}, not {wanted:.5}");
            return Err(self.mismatch(node, reason));
        }
        let sum = self.expect(inner, &["Add"])?;
        let Some((_, cubic)) = self.orders(sum)?.into_iter().find(|(a, _)| self.resolve(*a) == x) else {
            return Err(self.mismatch(sum, "expected x + 0.044715 x^3"));
        };
        let (factors, constant) = self.product(cubic);
        let cube = |v: &ValueId| {
            self.node(*v).is_some_and(|(id, n)| {
                let is = n.is("Pow")
                    && n.input(0).map(|v| self.resolve(v)) == Some(x)
                    && n.input(1).is_some_and(|e| self.is_scalar(e, 3.0));
                if is {
                    self.claim(id);
                }
                is
            })
        };
        if !(factors == [x, x, x] || factors.len() == 1 && factors.iter().all(cube)) {
            return Err(self.mismatch(sum, "expected x + 0.044715 x^3"));
        }
        if !self.close(constant, 0.044_715) {
            let reason = format!("computes a tanh-GELU whose cubic term is {constant:.6}, not 0.044715");
            return Err(self.mismatch(sum, reason));
        }
        Ok((Activation::GeluTanh, x))
    }
}
