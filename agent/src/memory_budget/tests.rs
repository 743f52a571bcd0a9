use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    process::Command,
    sync::{Mutex, PoisonError},
};

use spillway_device_plugin::device::{DeviceId, ResourceName};

use super::*;
use crate::{holders::PodRef, usage::processes::Processes};

const MIB: u64 = 1 << 20;

/// A pod with a budget of 1,000 MiB and these processes, in MiB.
fn pod(name: &str, budget_mib: Option<u64>, processes: &[(u32, u64)]) -> Use {
    let resource = ResourceName::new("nvidia.com/gpu.shared").unwrap();
    let processes: BTreeMap<_, _> =
        processes.iter().map(|(pid, mib)| (*pid, Some(mib.saturating_mul(MIB)))).collect();
    Use {
        key: Key {
            pod: PodRef {
                uid: format!("uid-{name}"),
                namespace: Some("default".to_owned()),
                name: Some(name.to_owned()),
            },
            accelerator: DeviceId::new("GPU-0").unwrap(),
            partition: None,
        },
        containers: BTreeMap::from([(("main".to_owned(), resource), 1)]),
        product: None,
        memory_limit: budget_mib.map(|mib| mib * MIB),
        memory_used: Some(processes.values().flatten().copied().fold(0, u64::saturating_add)),
        utilization: None,
        is_idle: None,
        idle_for: Duration::ZERO,
        unused_for: Duration::ZERO,
        processes,
    }
}

fn rules(mode: MemoryMode) -> MemoryShares {
    MemoryShares { mode, ..MemoryShares::default() }
}

/// What is done at each of these looks at one pod with a budget of 1,000 MiB.
fn steps(mode: MemoryMode, looks: &[&[(u32, u64)]]) -> Vec<Vec<Step>> {
    let mut enforcer = Enforcer::default();
    let look = |processes: &&[(u32, u64)]| {
        let usage = Usage { uses: vec![pod("a", Some(1_000), processes)], ..Usage::default() };
        enforcer.steps(&usage, &rules(mode)).into_iter().map(|(_, step)| step).collect()
    };
    looks.iter().map(look).collect()
}

#[test]
fn budgets_are_judged_at_their_edges() {
    let judged = |processes: &[(u32, u64)]| judge(&pod("a", Some(1_000), processes), &BTreeSet::new(), 90);
    assert_eq!(judged(&[]), Standing::Fine);
    assert_eq!(judged(&[(1, 899)]), Standing::Fine);
    assert_eq!(judged(&[(1, 500), (2, 400)]), Standing::Near);
    assert_eq!(judged(&[(1, 1_000)]), Standing::Near);
    assert_eq!(judged(&[(1, 400), (2, 601)]), Standing::Over { largest: Some(2) });
    // Of equals the one that came last.
    assert_eq!(judged(&[(1, 600), (2, 600)]), Standing::Over { largest: Some(2) });
    assert_eq!(judge(&pod("a", None, &[(1, 5_000)]), &BTreeSet::new(), 90), Standing::Fine);
    let most = u64::MAX / MIB;
    assert_eq!(judged(&[(1, most), (2, most)]), Standing::Over { largest: Some(2) });
}

#[test]
fn each_crossing_is_told_once() {
    let looks: [&[(u32, u64)]; 7] =
        [&[(1, 900)], &[(1, 950)], &[(1, 1_001)], &[(1, 999)], &[(1, 1_001)], &[(1, 10)], &[(1, 1_001)]];
    let none = Vec::new;
    assert_eq!(
        steps(MemoryMode::Report, &looks),
        [vec![Step::Warn], none(), vec![Step::Report], none(), none(), none(), vec![Step::Report]]
    );
    assert_eq!(steps(MemoryMode::Off, &looks), vec![none(); 7]);
}

#[test]
fn no_second_process_dies_for_what_the_first_still_seems_to_hold() {
    let looks: [&[(u32, u64)]; 5] = [
        &[(1, 700), (2, 600)],
        // The driver still lists the one that was killed.
        &[(1, 700), (2, 600)],
        &[(2, 600)],
        &[(2, 600), (3, 500)],
        &[(3, 500)],
    ];
    let none = Vec::new;
    assert_eq!(
        steps(MemoryMode::Kill, &looks),
        [vec![Step::Kill(1)], none(), none(), vec![Step::Kill(2)], none()]
    );
}

#[test]
fn a_process_that_resists_is_tried_again_and_told_of_once() {
    let mut enforcer = Enforcer::default();
    let usage = Usage { uses: vec![pod("a", Some(1_000), &[(1, 2_000)])], ..Usage::default() };
    for news in [true, false] {
        let steps = enforcer.steps(&usage, &rules(MemoryMode::Kill));
        assert_eq!(steps.iter().map(|(_, step)| step).collect::<Vec<_>>(), [&Step::Kill(1)]);
        let key = steps[0].0.key.clone();
        assert_eq!(enforcer.resists(&key, 1), news);
    }
}

/// Takes note of whom it is asked to end.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<Mutex<Vec<(u32, String)>>>);

impl Kill for Notes {
    fn kill(&self, pid: u32, pod_uid: &str) -> Result<(), KillError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((pid, pod_uid.to_owned()));
        Ok(())
    }
}

#[tokio::test]
async fn the_mode_is_taken_from_the_configuration_in_force() {
    let usage = watch::Sender::new(Usage {
        uses: vec![pod("greedy", Some(1_000), &[(10, 1_500)]), pod("modest", Some(1_000), &[(20, 900)])],
        ..Usage::default()
    });
    let configs = watch::Sender::new(Arc::new(Config::default()));
    let (metrics, stop, killer) = (BudgetMetrics::default(), CancellationToken::new(), Notes::default());
    let mut tasks = tokio::task::JoinSet::new();
    let budgets = MemoryBudgets {
        usage: usage.subscribe(),
        configs: configs.subscribe(),
        killer: killer.clone(),
        metrics: metrics.clone(),
        events: EventSink::default(),
    };
    tasks.spawn(budgets.watch_over(stop.clone()));
    let count = |outcome| {
        let labels = Labels { device: "GPU-0".to_owned(), outcome };
        metrics.exceeded.get_or_create(&labels).get()
    };
    while count("reported") == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*killer.0.lock().unwrap(), []);
    configs.send_modify(|config| Arc::make_mut(config).sharing.memory.mode = MemoryMode::Kill);
    while count("killed") == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*killer.0.lock().unwrap(), [(10, "uid-greedy".to_owned())]);
    stop.cancel();
    tasks.join_all().await;
}

#[test]
fn only_a_process_of_the_pod_is_ended() {
    let proc = tempfile::tempdir().unwrap();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id();
    let own = std::process::id();
    for pid in [pid, own] {
        fs::create_dir(proc.path().join(pid.to_string())).unwrap();
        fs::write(proc.path().join(format!("{pid}/cgroup")), "0::/kubepods/poduid-1/x\n").unwrap();
    }
    let killer = ProcessKiller { processes: Processes::at(proc.path()) };
    assert_eq!(killer.kill(pid, "uid-2"), Err(KillError::Elsewhere(pid)));
    for nonsense in [0, 1, own, u32::MAX] {
        assert_eq!(killer.kill(nonsense, "uid-1"), Err(KillError::Nonsense(nonsense)));
    }
    assert!(child.try_wait().unwrap().is_none(), "the child has ended too early");
    assert_eq!(killer.kill(pid, "uid-1"), Ok(()));
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(killer.kill(pid, "uid-1"), Err(KillError::Gone(pid)));
}
