//! The graph as petgraph's algorithms walk it, in place: by what nodes read, and by what flows between them.

use std::collections::HashSet;
use std::iter::{Enumerate, FilterMap};
use std::slice;

use petgraph::Directed;
use petgraph::visit::{
    Data, EdgeRef, GraphBase, GraphProp, GraphRef, IntoEdgeReferences, IntoEdges, IntoNeighbors, IntoNodeIdentifiers,
    IntoNodeReferences, NodeCount, NodeIndexable, Visitable,
};

use crate::ir::{Graph, Node, NodeId, ValueId};

/// A value that a node reads of another: its place among the node's inputs tells it from others.
#[derive(Clone, Copy, Debug)]
pub struct Edge<'g> {
    from: NodeId,
    to: NodeId,
    place: usize,
    value: &'g ValueId,
}

impl Edge<'_> {
    pub fn value(&self) -> ValueId {
        *self.value
    }

    /// Among the inputs of the node that reads.
    pub fn place(&self) -> usize {
        self.place
    }
}

impl EdgeRef for Edge<'_> {
    type NodeId = NodeId;
    type EdgeId = (NodeId, usize);
    type Weight = ValueId;

    fn source(&self) -> NodeId {
        self.from
    }

    fn target(&self) -> NodeId {
        self.to
    }

    fn weight(&self) -> &ValueId {
        self.value
    }

    fn id(&self) -> (NodeId, usize) {
        (self.to.max(self.from), self.place)
    }
}

/// What a node reads, in the order of its inputs: the value, and the node that makes it.
fn read<'g>(graph: &'g Graph, node: NodeId) -> impl DoubleEndedIterator<Item = (usize, &'g ValueId, NodeId)> + use<'g> {
    let inputs = graph.node(node).inputs.iter().enumerate();
    inputs.filter_map(|(place, value)| {
        let value = value.as_ref()?;
        Some((place, value, graph.producer_of(*value)?.0))
    })
}

/// From a node to those that it reads from.
#[derive(Clone, Copy)]
pub struct Reads<'g>(pub &'g Graph);

/// From a node to those that read from it.
#[derive(Clone, Copy)]
pub struct Flow<'g>(pub &'g Graph);

macro_rules! graph {
    ($view:ident) => {
        impl GraphBase for $view<'_> {
            type NodeId = NodeId;
            type EdgeId = (NodeId, usize);
        }

        impl GraphRef for $view<'_> {}

        impl Data for $view<'_> {
            type NodeWeight = Node;
            type EdgeWeight = ValueId;
        }
    };
}

graph!(Reads);
graph!(Flow);

/// Edges of all nodes, or of one.
type Edges<'g> = Box<dyn Iterator<Item = Edge<'g>> + 'g>;

impl Visitable for Reads<'_> {
    type Map = HashSet<NodeId>;

    fn visit_map(&self) -> HashSet<NodeId> {
        HashSet::new()
    }

    fn reset_map(&self, map: &mut HashSet<NodeId>) {
        map.clear();
    }
}

impl<'g> IntoNeighbors for Reads<'g> {
    type Neighbors = Box<dyn Iterator<Item = NodeId> + 'g>;

    /// The last first: a walk with a stack then takes them in the order of the inputs.
    fn neighbors(self, node: NodeId) -> Self::Neighbors {
        Box::new(read(self.0, node).rev().map(|(.., producer)| producer))
    }
}

impl<'g> IntoEdgeReferences for Reads<'g> {
    type EdgeRef = Edge<'g>;
    type EdgeReferences = Edges<'g>;

    fn edge_references(self) -> Edges<'g> {
        Box::new(self.0.node_ids().flat_map(move |node| self.edges(node)))
    }
}

impl<'g> IntoEdges for Reads<'g> {
    type Edges = Edges<'g>;

    fn edges(self, node: NodeId) -> Edges<'g> {
        Box::new(read(self.0, node).map(move |(place, value, to)| Edge { from: node, to, place, value }))
    }
}

impl<'g> IntoEdgeReferences for Flow<'g> {
    type EdgeRef = Edge<'g>;
    type EdgeReferences = Edges<'g>;

    fn edge_references(self) -> Edges<'g> {
        let of_node = move |to| read(self.0, to).map(move |(place, value, from)| Edge { from, to, place, value });
        Box::new(self.0.node_ids().flat_map(of_node))
    }
}

impl<'g> IntoNodeIdentifiers for Flow<'g> {
    type NodeIdentifiers = Box<dyn Iterator<Item = NodeId> + 'g>;

    fn node_identifiers(self) -> Self::NodeIdentifiers {
        Box::new(self.0.node_ids())
    }
}

/// Nodes that are there, with their numbers.
type Present<'g> =
    FilterMap<Enumerate<slice::Iter<'g, Option<Node>>>, fn((usize, &'g Option<Node>)) -> Option<(NodeId, &'g Node)>>;

impl<'g> IntoNodeReferences for Flow<'g> {
    type NodeRef = (NodeId, &'g Node);
    type NodeReferences = Present<'g>;

    fn node_references(self) -> Present<'g> {
        self.0.nodes.iter().enumerate().filter_map(|(index, node)| Some((NodeId(index as u32), node.as_ref()?)))
    }
}

impl NodeIndexable for Flow<'_> {
    fn node_bound(&self) -> usize {
        self.0.nodes.len()
    }

    fn to_index(&self, node: NodeId) -> usize {
        node.index()
    }

    fn from_index(&self, index: usize) -> NodeId {
        NodeId(index as u32)
    }
}

impl NodeCount for Flow<'_> {
    fn node_count(&self) -> usize {
        self.0.node_ids().count()
    }
}

impl GraphProp for Flow<'_> {
    type EdgeType = Directed;
}
