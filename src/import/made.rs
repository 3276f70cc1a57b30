//! How a side network was made, by the names and shapes of its tensors: an error shows this instead of every tensor that
//! does not fit.

use std::collections::{BTreeMap, BTreeSet};

use lstc_passes::ladder::key::BLOCK;

/// Tensors by name, without a common prefix.
pub type Shapes<'t> = BTreeMap<&'t str, &'t [usize]>;

/// The choices of a rewrite that decide the parameters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Width of the backbone's stream, and the reduction; none where tensors disagree.
    width: Option<(usize, usize)>,
    /// Kept blocks by tower.
    blocks: BTreeMap<String, BTreeSet<usize>>,
    bias: bool,
    merge_last: bool,
}

const UPSAMPLE: &str = "side_final_upsample.weight";

impl Made {
    pub fn of(shapes: &Shapes) -> Made {
        let mut made = Made::default();
        let mut widths = BTreeSet::new();
        for (name, shape) in shapes {
            if let Some((tower, rest)) = name.split_once(BLOCK)
                && let Some(block) = rest.split('.').next().and_then(|block| block.parse().ok())
            {
                made.blocks.entry(tower.to_owned()).or_default().insert(block);
            }
            let is_down = name.contains("side_") && name.contains("downsample") && name.ends_with(".weight");
            match shape {
                [narrow, wide] if is_down => widths.insert((*wide, *narrow)),
                [wide, narrow] if *name == UPSAMPLE => widths.insert((*wide, *narrow)),
                _ => false,
            };
            made.bias |= name.contains("side_") && name.ends_with("sample.bias");
            made.merge_last |= name.ends_with("side_gate_params_merge_last");
        }
        made.width = match widths.into_iter().collect::<Vec<_>>()[..] {
            [(wide, narrow)] if narrow > 0 && wide / (wide / narrow) == narrow => Some((wide, wide / narrow)),
            _ => None,
        };
        made
    }

    /// Whether the tensors belong to one network.
    pub fn is_whole(&self) -> bool {
        self.width.is_some()
    }

    /// How a message describes it.
    pub fn describe(&self) -> String {
        let width = match self.width {
            Some((wide, reduction)) => format!("r = {reduction} of a backbone of width {wide}"),
            None => "widths that do not agree with each other".to_owned(),
        };
        let blocks = self.blocks.iter().map(|(tower, blocks)| format!(", {tower} blocks {}", list(blocks)));
        let bias = if self.bias { ", biases" } else { ", no biases" };
        let merge = if self.merge_last { ", merge_last" } else { "" };
        format!("{width}{}{bias}{merge}", blocks.collect::<String>())
    }

    /// The flags of a rewrite that turn `other` into this one; none if no flags do.
    pub fn flags(&self, other: &Made) -> Option<String> {
        let mut flags = Vec::new();
        let ((wide, reduction), (other_wide, other_reduction)) = (self.width?, other.width?);
        if wide != other_wide || !self.blocks.keys().eq(other.blocks.keys()) {
            return None;
        }
        if reduction != other_reduction {
            flags.push(format!("-r {reduction}"));
        }
        for (tower, blocks) in &self.blocks {
            if other.blocks.get(tower) != Some(blocks) {
                flags.push(format!("--{tower}-blocks {}", list(blocks)));
            }
        }
        if self.bias != other.bias {
            flags.push(format!("--bias={}", self.bias));
        }
        if self.merge_last != other.merge_last {
            flags.push(format!("--merge-last={}", self.merge_last));
        }
        Some(flags.join(" "))
    }
}

fn list(blocks: &BTreeSet<usize>) -> String {
    blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(tensors: &[(&'static str, &'static [usize])]) -> Made {
        Made::of(&tensors.iter().copied().collect())
    }

    #[test]
    fn flags_make_one_of_the_other() {
        let file = made(&[
            ("encoder.side_first_downsample.weight", &[8, 32]),
            ("encoder.side_block.0.layer.0.layer_norm.weight", &[8]),
            ("side_final_upsample.weight", &[32, 8]),
            ("side_final_upsample.bias", &[32]),
        ]);
        let directory = made(&[
            ("encoder.side_first_downsample.weight", &[4, 32]),
            ("encoder.side_block.0.layer.0.layer_norm.weight", &[4]),
            ("encoder.side_block.3.layer.0.layer_norm.weight", &[4]),
            ("side_final_upsample.weight", &[32, 4]),
            ("side_gate_params_merge_last", &[1]),
        ]);
        assert_eq!(file.describe(), "r = 4 of a backbone of width 32, encoder blocks 0, biases");
        assert_eq!(directory.describe(), "r = 8 of a backbone of width 32, encoder blocks 0,3, no biases, merge_last");
        let flags = "-r 4 --encoder-blocks 0 --bias=true --merge-last=false";
        assert_eq!(file.flags(&directory).as_deref(), Some(flags));
        assert_eq!(file.flags(&file).as_deref(), Some(""));
    }

    #[test]
    fn no_flags_make_one_of_another_model_or_of_tensors_that_disagree() {
        let one = made(&[("side_final_upsample.weight", &[32, 8])]);
        let wider = made(&[("side_final_upsample.weight", &[64, 8])]);
        let torn =
            made(&[("side_final_upsample.weight", &[32, 8]), ("encoder.side_first_downsample.weight", &[4, 32])]);
        assert_eq!((wider.flags(&one), torn.flags(&one)), (None, None));
    }
}
