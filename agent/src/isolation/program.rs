//! The device program: rules in, bytecode out. Pure; nothing here talks to the kernel.
//!
//! The program runs in the kernel whenever a process below the kubepods cgroup opens or makes a device node. It passes everything that
//! is no protected character device, and every mknod: a node that can't be opened is worth nothing. Of a protected node it looks up
//! the process's pod (its ancestor one or two levels below kubepods: Guaranteed pods lie directly in it, the others in a cgroup of
//! their class) together with the node's number in a map that user space fills. What isn't there is counted, and refused unless
//! the program is only to look.

use std::{collections::BTreeMap, fmt};

/// Bits of a device's minor number in the kernel.
const MINOR_LIMIT: u32 = (1 << 20) - 1;
/// Bits of its major.
const MAJOR_LIMIT: u32 = (1 << 12) - 1;
/// How many levels above what we see of the hierarchy may be hidden by a cgroup namespace, as in a node that is a container itself.
const HIDDEN_LEVELS: u32 = 16;

/// A character device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// Which driver.
    pub major: u32,
    /// Which of its nodes.
    pub minor: u32,
}

impl Number {
    /// In the map of what is allowed: every protected node.
    pub const ALL: Self = Self { major: u32::MAX, minor: u32::MAX };
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// Which character devices are protected. Ranges of minors by major, in order, neither touching nor overlapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    minors: BTreeMap<u32, Vec<(u32, u32)>>,
}

impl Rules {
    /// Adds a driver with all of its nodes.
    pub fn protect_major(&mut self, major: u32) {
        self.protect_range(major, 0, MINOR_LIMIT);
    }

    /// Adds one node. Numbers that no device can have are left out.
    pub fn protect(&mut self, number: Number) {
        self.protect_range(number.major, number.minor, number.minor);
    }

    fn protect_range(&mut self, major: u32, first: u32, last: u32) {
        if major > MAJOR_LIMIT || last > MINOR_LIMIT || first > last {
            return;
        }
        let ranges = self.minors.entry(major).or_default();
        ranges.push((first, last));
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for &(first, last) in ranges.iter() {
            match merged.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        *ranges = merged;
    }

    /// Whether the node is protected.
    pub fn protects(&self, number: Number) -> bool {
        self.minors
            .get(&number.major)
            .is_some_and(|ranges| ranges.iter().any(|(first, last)| (*first..=*last).contains(&number.minor)))
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.minors.is_empty()
    }
}

/// Where the program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The kubepods cgroup's ID.
    pub cgroup: u64,
    /// Its level as far as we see: the root has 0. The real one may be deeper.
    pub level: u32,
}

/// What happens to an open that isn't allowed. It is counted in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It passes.
    Audit,
    /// EPERM.
    Enforce,
}

/// The rules don't fit a program.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} ranges of protected device nodes are too many for one program")]
pub struct TooManyRules(usize);

/// A key of the map of what is allowed, as the program reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllowKey {
    /// The pod's cgroup.
    pub cgroup: u64,
    /// The node, or [`Number::ALL`].
    pub number: Number,
}

impl AllowKey {
    /// Bytes on the wire between kernel and us.
    pub const SIZE: usize = 16;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.cgroup.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.number.major.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.number.minor.to_ne_bytes());
        bytes
    }

    /// From bytes.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let (cgroup, number) = bytes.split_at(8);
        Self { cgroup: u64_at(cgroup), number: number_at(number) }
    }
}

/// A key of the map of denials, as the program writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DenyKey {
    /// The process's ancestor one level below kubepods: a Guaranteed pod, or a class of pods. 0: there is none.
    pub upper: u64,
    /// The one two levels below: another pod, or a container. 0: there is none.
    pub lower: u64,
    /// The node.
    pub number: Number,
}

impl DenyKey {
    /// Bytes on the wire between kernel and us.
    pub const SIZE: usize = 24;

    /// From bytes.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let (upper, rest) = bytes.split_at(8);
        let (lower, number) = rest.split_at(8);
        Self { upper: u64_at(upper), lower: u64_at(lower), number: number_at(number) }
    }
}

fn u64_at(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

fn number_at(bytes: &[u8]) -> Number {
    let (major, minor) = bytes.split_at(4);
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
    Number { major: word(major), minor: word(minor) }
}

/// File descriptors of the program's maps.
#[derive(Debug, Clone, Copy)]
pub struct Maps {
    /// [`AllowKey`] to anything.
    pub allowed: i32,
    /// [`DenyKey`] to a count of 64 bits.
    pub denied: i32,
}

/// One instruction as the kernel takes it (`struct bpf_insn`).
pub type Instruction = [u8; 8];

// struct bpf_cgroup_dev_ctx, linux/bpf.h.
const CONTEXT_ACCESS_AND_TYPE: i16 = 0;
const CONTEXT_MAJOR: i16 = 4;
const CONTEXT_MINOR: i16 = 8;
const TYPE_CHARACTER: i32 = 2;
const ACCESS_READ_WRITE: i32 = 2 | 4;

// Helper functions, linux/bpf.h.
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const ANCESTOR_CGROUP_ID: i32 = 123;

// Where things lie on the stack. First the key of a denial, which is filled as the ancestors become known; below it, that of a look-up.
// Each is 8 bytes and written at once: halves of one are what the verifier of Linux 6.1 takes for a damaged pointer, unless the agent
// has CAP_PERFMON.
const DENY_UPPER: i16 = -24;
const DENY_LOWER: i16 = -16;
const DENY_NUMBER: i16 = -8;
const ALLOW_CGROUP: i16 = -40;
const ALLOW_NUMBER: i16 = -32;
const COUNT: i16 = -48;

// Registers. 6 to 9 survive calls.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const LEVEL: u8 = 7;
const MAJOR: u8 = 8;
const MINOR: u8 = 9;
/// Both, from [`join_number`] on.
const NUMBER: u8 = MAJOR;
const FRAME: u8 = 10;

// Operations, linux/bpf_common.h and linux/bpf.h.
const ADD: u8 = 0x07;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const OR_REGISTER: u8 = 0x4f;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const LOAD_WORD: u8 = 0x61;
const STORE_DOUBLE: u8 = 0x7a;
const STORE_REGISTER_DOUBLE: u8 = 0x7b;
const ATOMIC_ADD_DOUBLE: u8 = 0xdb;
const LOAD_IMMEDIATE: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const JUMP: u8 = 0x05;
const IF_EQUAL: u8 = 0x15;
const IF_EQUAL_REGISTER: u8 = 0x1d;
const IF_NOT_EQUAL: u8 = 0x55;
const IF_LESS: u8 = 0xa5;
const IF_LESS_OR_EQUAL: u8 = 0xb5;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// A place in the program that jumps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

/// Writes instructions; jumps are resolved at the end.
#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn put(&mut self, operation: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        let mut instruction = [operation, (from << 4) | to, 0, 0, 0, 0, 0, 0];
        instruction[2..4].copy_from_slice(&offset.to_ne_bytes());
        instruction[4..].copy_from_slice(&immediate.to_ne_bytes());
        self.code.push(instruction);
    }

    fn set(&mut self, register: u8, value: i32) {
        self.put(MOVE, register, 0, 0, value);
    }

    fn jump(&mut self, operation: u8, register: u8, other: u8, immediate: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(operation, register, other, 0, immediate);
    }

    fn wide(&mut self, register: u8, source: u8, value: u64) {
        let (low, high) = (value.to_le_bytes(), value >> 32);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, i32::from_le_bytes);
        self.put(LOAD_IMMEDIATE, register, source, 0, word(&low[..4]));
        self.put(0, 0, 0, 0, word(&high.to_le_bytes()[..4]));
    }

    fn map(&mut self, register: u8, fd: i32) {
        self.put(LOAD_IMMEDIATE, register, PSEUDO_MAP_FD, 0, fd);
        self.put(0, 0, 0, 0, 0);
    }

    fn address(&mut self, register: u8, on_stack: i16) {
        self.put(MOVE_REGISTER, register, FRAME, 0, 0);
        self.put(ADD, register, 0, 0, i32::from(on_stack));
    }

    /// The ancestor `below` levels below kubepods goes to [`R0`]; 0 if there is none.
    fn ancestor(&mut self, below: i32) {
        self.put(MOVE_REGISTER, R1, LEVEL, 0, 0);
        self.put(ADD, R1, 0, 0, below);
        self.put(CALL, 0, 0, 0, ANCESTOR_CGROUP_ID);
    }

    /// Jumps to `found` if the map has the key that lies at [`ALLOW_CGROUP`].
    fn look_up(&mut self, map: i32, found: Label) {
        self.map(R1, map);
        self.address(R2, ALLOW_CGROUP);
        self.put(CALL, 0, 0, 0, MAP_LOOKUP);
        self.jump(IF_NOT_EQUAL, R0, 0, 0, found);
    }

    /// Jumps to `found` if the cgroup in [`R0`] may open this node, or all.
    fn allowed(&mut self, map: i32, found: Label) {
        self.put(STORE_REGISTER_DOUBLE, FRAME, R0, ALLOW_CGROUP, 0);
        self.put(STORE_REGISTER_DOUBLE, FRAME, NUMBER, ALLOW_NUMBER, 0);
        self.look_up(map, found);
        // The kernel extends the sign: this is Number::ALL.
        self.put(STORE_DOUBLE, FRAME, 0, ALLOW_NUMBER, -1);
        self.look_up(map, found);
    }

    /// Resolves the jumps; none if one is too long.
    fn finish(mut self) -> Option<Vec<Instruction>> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0]?;
            let offset = i16::try_from(target.checked_sub(at + 1)?).ok()?;
            self.code[at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        Some(self.code)
    }
}

/// Writes the program.
///
/// # Errors
/// When there are thousands of ranges, which no machine has.
pub fn compile(
    rules: &Rules,
    place: Place,
    effect: Effect,
    maps: Maps,
) -> Result<Vec<Instruction>, TooManyRules> {
    let mut code = Assembler::default();
    if rules.is_empty() {
        // The kernel refuses programs with parts that nothing leads to.
        code.set(R0, 1);
        code.put(EXIT, 0, 0, 0, 0);
        return Ok(code.code);
    }
    let (pass, check, deny) = (code.label(), code.label(), code.label());
    read_context(&mut code, pass);
    match_rules(&mut code, rules, check, pass);

    code.here(check);
    join_number(&mut code);
    find_level(&mut code, place, deny);
    code.ancestor(1);
    code.put(STORE_REGISTER_DOUBLE, FRAME, R0, DENY_UPPER, 0);
    code.jump(IF_EQUAL, R0, 0, 0, deny);
    code.allowed(maps.allowed, pass);
    code.ancestor(2);
    code.put(STORE_REGISTER_DOUBLE, FRAME, R0, DENY_LOWER, 0);
    code.jump(IF_EQUAL, R0, 0, 0, deny);
    code.allowed(maps.allowed, pass);

    code.here(deny);
    count(&mut code, maps.denied);
    code.set(R0, i32::from(effect == Effect::Audit));
    code.put(EXIT, 0, 0, 0, 0);
    code.here(pass);
    code.set(R0, 1);
    code.put(EXIT, 0, 0, 0, 0);
    code.finish().ok_or_else(|| TooManyRules(rules.minors.values().map(Vec::len).sum()))
}

/// Passes what is no character device and what neither reads nor writes; the rest goes on with its number in registers.
fn read_context(code: &mut Assembler, pass: Label) {
    code.put(MOVE_REGISTER, CONTEXT, R1, 0, 0);
    code.put(LOAD_WORD, R2, CONTEXT, CONTEXT_ACCESS_AND_TYPE, 0);
    code.put(MOVE_REGISTER, R3, R2, 0, 0);
    code.put(AND, R3, 0, 0, 0xffff);
    code.jump(IF_NOT_EQUAL, R3, 0, TYPE_CHARACTER, pass);
    code.put(SHIFT_RIGHT, R2, 0, 0, 16);
    code.put(AND, R2, 0, 0, ACCESS_READ_WRITE);
    code.jump(IF_EQUAL, R2, 0, 0, pass);
    code.put(LOAD_WORD, MAJOR, CONTEXT, CONTEXT_MAJOR, 0);
    code.put(LOAD_WORD, MINOR, CONTEXT, CONTEXT_MINOR, 0);
}

/// Goes to `check` if a rule matches, to `pass` otherwise.
fn match_rules(code: &mut Assembler, rules: &Rules, check: Label, pass: Label) {
    // Majors have 12 bits and minors 20, so none of them is negative here.
    let immediate = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    for (major, ranges) in &rules.minors {
        let next = code.label();
        code.jump(IF_NOT_EQUAL, MAJOR, 0, immediate(*major), next);
        for &(first, last) in ranges {
            if first == last {
                code.jump(IF_EQUAL, MINOR, 0, immediate(first), check);
            } else {
                let above = code.label();
                code.jump(IF_LESS, MINOR, 0, immediate(first), above);
                code.jump(IF_LESS_OR_EQUAL, MINOR, 0, immediate(last), check);
                code.here(above);
            }
        }
        code.jump(JUMP, 0, 0, 0, pass);
        code.here(next);
    }
    code.jump(JUMP, 0, 0, 0, pass);
}

/// Puts major and minor into one register, so that in memory the major lies before the minor, as in a key.
fn join_number(code: &mut Assembler) {
    let last_in_memory = if cfg!(target_endian = "little") { MINOR } else { MAJOR };
    code.put(SHIFT_LEFT, last_in_memory, 0, 0, 32);
    code.put(OR_REGISTER, NUMBER, MINOR, 0, 0);
}

/// Finds the level of the kubepods cgroup: on a real machine at the first try.
fn find_level(code: &mut Assembler, place: Place, deny: Label) {
    let found = code.label();
    // The whole key is written before a jump to `deny`: the verifier lets no program read what it didn't write.
    code.put(STORE_DOUBLE, FRAME, 0, DENY_UPPER, 0);
    code.put(STORE_DOUBLE, FRAME, 0, DENY_LOWER, 0);
    code.put(STORE_REGISTER_DOUBLE, FRAME, NUMBER, DENY_NUMBER, 0);
    let level = i32::try_from(place.level).unwrap_or(i32::MAX - 64);
    for hidden in 0..=HIDDEN_LEVELS {
        code.set(LEVEL, level + i32::try_from(hidden).unwrap_or_default());
        code.ancestor(0);
        code.jump(IF_EQUAL, R0, 0, 0, deny);
        code.wide(R1, 0, place.cgroup);
        code.jump(IF_EQUAL_REGISTER, R0, R1, 0, found);
    }
    code.jump(JUMP, 0, 0, 0, deny);
    code.here(found);
}

/// Counts the denial whose key lies at [`DENY_UPPER`].
fn count(code: &mut Assembler, denied: i32) {
    let (known, counted) = (code.label(), code.label());
    code.map(R1, denied);
    code.address(R2, DENY_UPPER);
    code.put(CALL, 0, 0, 0, MAP_LOOKUP);
    code.jump(IF_NOT_EQUAL, R0, 0, 0, known);
    code.put(STORE_DOUBLE, FRAME, 0, COUNT, 1);
    code.map(R1, denied);
    code.address(R2, DENY_UPPER);
    code.address(R3, COUNT);
    code.set(R4, 0);
    code.put(CALL, 0, 0, 0, MAP_UPDATE);
    code.jump(JUMP, 0, 0, 0, counted);
    code.here(known);
    code.set(R1, 1);
    code.put(ATOMIC_ADD_DOUBLE, R0, R1, 0, 0);
    code.here(counted);
}

#[cfg(test)]
mod tests;
