//! Machines in the same state stand together: what holds of one holds of all. What a pod makes of a state is worked out once and then remembered.

use std::collections::{BTreeSet, HashMap};

use super::state::{QuickHash, State};

/// What a pod does to the state of a machine by coming or going, where the same always has the same effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) kind: u32,
    /// What was free of the GPU that it shares; 0 where it shares none.
    pub(super) free: u16,
    pub(super) comes: bool,
    /// The last pod of its tag.
    pub(super) clears_tag: bool,
}

/// More steps than this are not remembered of a state: they are looked through one by one.
const STEPS: usize = 16;

/// Machines in the same state.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) state: State,
    /// The machines, by number.
    pub(super) nodes: BTreeSet<u32>,
    /// Where it stands among those that have machines.
    active: u32,
    /// To which group steps lead.
    steps: Vec<(Step, u32)>,
    /// What a packing's score told of each kind, where it is worth keeping.
    pub(super) scores: Vec<Option<u8>>,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    all: Vec<Group>,
    by_state: HashMap<State, u32, QuickHash>,
    /// Groups that have machines.
    active: Vec<u32>,
    /// Groups that may be used again.
    unused: Vec<u32>,
    machines: usize,
}

impl Groups {
    /// Those that have machines.
    pub(super) fn active(&self) -> &[u32] {
        &self.active
    }

    pub(super) fn of(&self, group: u32) -> &Group {
        &self.all[group as usize]
    }

    pub(super) fn of_mut(&mut self, group: u32) -> &mut Group {
        &mut self.all[group as usize]
    }

    /// Forgets what scores told.
    pub(super) fn forget_scores(&mut self) {
        self.all.iter_mut().for_each(|group| group.scores.clear());
    }

    /// Puts another machine into the group of its state, and tells which that is.
    pub(super) fn add(&mut self, node: u32, state: State) -> u32 {
        self.machines += 1;
        let group = self.find(state);
        self.join(node, group);
        group
    }

    /// Moves a machine of group `from` to the group of the state that `change` makes of its own, and tells which that is. A step says that the change is always the same.
    pub(super) fn shift(
        &mut self,
        node: u32,
        from: u32,
        step: Option<Step>,
        change: impl FnOnce(&mut State),
    ) -> u32 {
        let steps = &self.all[from as usize].steps;
        let known = step.and_then(|step| steps.iter().find(|(known, _)| *known == step));
        let to = if let Some((_, to)) = known {
            *to
        } else {
            let mut state = self.all[from as usize].state.clone();
            change(&mut state);
            let to = self.find(state);
            let steps = &mut self.all[from as usize].steps;
            if let Some(step) = step
                && steps.len() < STEPS
            {
                steps.push((step, to));
            }
            to
        };
        if to != from {
            self.leave(node, from);
            self.join(node, to);
        }
        to
    }

    fn leave(&mut self, node: u32, from: u32) {
        let group = &mut self.all[from as usize];
        group.nodes.remove(&node);
        if group.nodes.is_empty() {
            let at = group.active;
            self.active.swap_remove(at as usize);
            if let Some(moved) = self.active.get(at as usize) {
                self.all[*moved as usize].active = at;
            }
        }
    }

    fn join(&mut self, node: u32, to: u32) {
        let group = &mut self.all[to as usize];
        if group.nodes.is_empty() {
            group.active = index_of(self.active.len());
            self.active.push(to);
        }
        group.nodes.insert(node);
    }

    /// The group of a state.
    fn find(&mut self, state: State) -> u32 {
        if let Some(group) = self.by_state.get(&state) {
            return *group;
        }
        if self.by_state.len() > 4 * self.machines + 1024 {
            self.sweep();
        }
        let group = Group {
            state: state.clone(),
            nodes: BTreeSet::new(),
            active: 0,
            steps: Vec::new(),
            scores: Vec::new(),
        };
        let number = if let Some(number) = self.unused.pop() {
            self.all[number as usize] = group;
            number
        } else {
            self.all.push(group);
            index_of(self.all.len() - 1)
        };
        self.by_state.insert(state, number);
        number
    }

    /// Forgets states in which no machine is, and every step: it may lead to one of them.
    fn sweep(&mut self) {
        for (number, group) in (0..).zip(&mut self.all) {
            group.steps.clear();
            if group.nodes.is_empty() && self.by_state.get(&group.state) == Some(&number) {
                self.by_state.remove(&group.state);
                self.unused.push(number);
            }
        }
    }
}

/// Numbers of machines, groups and kinds: pools are limited to far fewer than 2^32.
#[expect(clippy::cast_possible_truncation, reason = "as said")]
pub(super) fn index_of(index: usize) -> u32 {
    index as u32
}
