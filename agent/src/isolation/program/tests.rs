use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt as _,
};

use proptest::prelude::*;

use super::*;

const ALLOWED: i32 = 7;
const DENIED: i32 = 8;

/// What the helper functions see and do. They are plain functions, so it lies in a thread's own place.
#[derive(Default)]
struct Kernel {
    ancestors: Vec<u64>,
    allowed: BTreeSet<AllowKey>,
    denied: BTreeMap<DenyKey, u64>,
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

/// Reads this process's memory where the program points to, without a pointer.
fn memory<const N: usize>(address: u64) -> [u8; N] {
    let mut bytes = [0; N];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address).unwrap();
    bytes
}

fn look_up(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    // Only `allowed` is ever found: the counter's atomic addition is nothing that this machine can do.
    let found = i32::try_from(map) == Ok(ALLOWED)
        && KERNEL.with_borrow(|kernel| kernel.allowed.contains(&AllowKey::from_bytes(memory(key))));
    u64::from(found)
}

fn update(map: u64, key: u64, value: u64, flags: u64, _: u64) -> u64 {
    assert_eq!((i32::try_from(map), flags), (Ok(DENIED), 0), "the program may write to its counter only");
    let count = u64::from_ne_bytes(memory(value));
    KERNEL.with_borrow_mut(|kernel| kernel.denied.insert(DenyKey::from_bytes(memory(key)), count));
    0
}

fn ancestor(level: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    let level = usize::try_from(level).unwrap();
    KERNEL.with_borrow(|kernel| kernel.ancestors.get(level).copied().unwrap_or(0))
}

/// Runs the program as the kernel would; gives its answer and what it counted.
fn run(
    code: &[Instruction],
    context: [u32; 3],
    ancestors: &[u64],
    allowed: &BTreeSet<AllowKey>,
) -> (u64, BTreeMap<DenyKey, u64>) {
    KERNEL.set(Kernel { ancestors: ancestors.to_vec(), allowed: allowed.clone(), denied: BTreeMap::new() });
    let bytes = code.concat();
    let mut machine = rbpf::EbpfVmRaw::new(None).unwrap();
    // Its own verifier knows no atomic addition; the kernel's has the last word anyway.
    machine.set_verifier(|_| Ok(())).unwrap();
    machine.set_program(&bytes).unwrap();
    for (number, helper) in
        [(MAP_LOOKUP, look_up as rbpf::ebpf::Helper), (MAP_UPDATE, update), (ANCESTOR_CGROUP_ID, ancestor)]
    {
        machine.register_helper(u32::try_from(number).unwrap(), helper).unwrap();
    }
    let mut context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
    let answer = machine.execute_program(&mut context).unwrap();
    (answer, KERNEL.with_borrow(|kernel| kernel.denied.clone()))
}

/// The same, said plainly.
fn naive(
    rules: &Rules,
    place: Place,
    effect: Effect,
    [access_and_type, major, minor]: [u32; 3],
    ancestors: &[u64],
    allowed: &BTreeSet<AllowKey>,
) -> (u64, BTreeMap<DenyKey, u64>) {
    let number = Number { major, minor };
    let (access, kind) = (access_and_type >> 16, access_and_type & 0xffff);
    if kind != 2 || access & 6 == 0 || !rules.protects(number) {
        return (1, BTreeMap::new());
    }
    let seen = usize::try_from(place.level).unwrap();
    let level = (seen..=seen + 16).find(|level| ancestors.get(*level) == Some(&place.cgroup));
    let at = |below| level.and_then(|level| ancestors.get(level + below)).copied().unwrap_or(0);
    let (upper, lower) = (at(1), at(2));
    let may = [upper, lower].into_iter().filter(|cgroup| *cgroup != 0).any(|cgroup| {
        allowed.contains(&AllowKey { cgroup, number })
            || allowed.contains(&AllowKey { cgroup, number: Number::ALL })
    });
    if may {
        return (1, BTreeMap::new());
    }
    (u64::from(effect == Effect::Audit), BTreeMap::from([(DenyKey { upper, lower, number }, 1)]))
}

/// A few numbers near each other, so that they often meet.
fn number() -> impl Strategy<Value = Number> {
    let major = prop_oneof![Just(1u32), Just(195), Just(226), Just(511)];
    let minor = prop_oneof![0u32..6, Just(254u32), Just(255), Just(MINOR_LIMIT)];
    (major, minor).prop_map(|(major, minor)| Number { major, minor })
}

fn rules() -> impl Strategy<Value = Rules> {
    let rule = prop_oneof![
        number().prop_map(|number| (number.major, number.minor, number.minor)),
        number().prop_map(|number| (number.major, 0, MINOR_LIMIT)),
        (number(), 0u32..4).prop_map(|(number, more)| (number.major, number.minor, number.minor + more)),
    ];
    prop::collection::vec(rule, 0..8).prop_map(|ranges| {
        let mut rules = Rules::default();
        for (major, first, last) in ranges {
            rules.protect_range(major, first, last);
        }
        rules
    })
}

/// IDs as the kernel gives them: some above 32 bits.
fn cgroup() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..6, Just(0xffff_ffff), Just(0x1_0000_0001), Just(u64::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_program_does_what_a_naive_evaluator_says(
        rules in rules(),
        level in 0u32..4,
        kubepods in cgroup(),
        enforce: bool,
        access in 0u32..8,
        kind in 0u32..4,
        number in number(),
        ancestors in prop::collection::vec(cgroup(), 1..8),
        allowed in prop::collection::btree_set((cgroup(), prop_oneof![number(), Just(Number::ALL)]), 0..12),
    ) {
        let effect = if enforce { Effect::Enforce } else { Effect::Audit };
        let allowed = allowed.into_iter().map(|(cgroup, number)| AllowKey { cgroup, number }).collect();
        let place = Place { cgroup: kubepods, level };
        let context = [access << 16 | kind, number.major, number.minor];
        let code = compile(&rules, place, effect, Maps { allowed: ALLOWED, denied: DENIED }).unwrap();
        prop_assert_eq!(
            run(&code, context, &ancestors, &allowed),
            naive(&rules, place, effect, context, &ancestors, &allowed)
        );
    }

    #[test]
    fn rules_protect_what_was_put_in(numbers in prop::collection::btree_set(number(), 0..20), other in number()) {
        let mut rules = Rules::default();
        for number in &numbers {
            rules.protect(*number);
        }
        prop_assert_eq!(rules.protects(other), numbers.contains(&other));
    }
}

#[test]
fn keys_survive_the_way_to_the_kernel() {
    let key = AllowKey { cgroup: 0x1_0000_0002, number: Number { major: 195, minor: 255 } };
    assert_eq!(AllowKey::from_bytes(key.to_bytes()), key);
    assert_eq!(key.to_bytes()[8..12], 195u32.to_ne_bytes());
}

#[test]
fn a_pod_is_found_at_both_levels_and_below_what_a_namespace_hides() {
    let mut rules = Rules::default();
    rules.protect_major(195);
    let gpu = Number { major: 195, minor: 0 };
    let maps = Maps { allowed: ALLOWED, denied: DENIED };
    let allowed = BTreeSet::from([AllowKey { cgroup: 30, number: gpu }]);
    let open = [6 << 16 | 2, 195, 0];
    // Where /kubepods is all we see, but two levels are above it.
    let code = compile(&rules, Place { cgroup: 9, level: 1 }, Effect::Enforce, maps).unwrap();
    for (ancestors, answer) in [
        (&[1, 9, 30, 40][..], 1),
        (&[1, 9, 20, 30, 40], 1),
        (&[1, 5, 6, 9, 20, 30], 1),
        // A container that has the pod's ID by chance is no pod.
        (&[1, 9, 20, 21, 30], 0),
        (&[1, 9], 0),
        (&[1], 0),
    ] {
        assert_eq!(run(&code, open, ancestors, &allowed).0, answer, "{ancestors:?}");
    }
}

#[test]
fn numbers_that_no_device_has_and_too_many_rules_are_refused() {
    let mut rules = Rules::default();
    rules.protect(Number { major: 4096, minor: 0 });
    rules.protect(Number { major: 1, minor: 1 << 20 });
    rules.protect(Number::ALL);
    assert!(rules.is_empty());
    for minor in 0..40_000 {
        rules.minors.entry(1).or_default().push((minor * 2, minor * 2));
    }
    let maps = Maps { allowed: ALLOWED, denied: DENIED };
    let refused = compile(&rules, Place { cgroup: 9, level: 1 }, Effect::Enforce, maps).unwrap_err();
    assert_eq!(refused, TooManyRules(40_000));
}
