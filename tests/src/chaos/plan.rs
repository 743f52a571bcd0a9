//! What shall happen, drawn from a seed: faults and pods. Pure; the same seed gives the same plan, though not the same moments.

use serde_json::{Value, json};

use crate::image::BUSYBOX;

/// A small generator (`SplitMix64`) whose numbers are the same everywhere and for ever, so that a seed stays worth something.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers of a seed and a purpose: what is drawn for one doesn't shift what is drawn for another.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self(seed.wrapping_add(purpose.wrapping_mul(0xa076_1d64_78bd_642f)))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low + 1)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.draw() % 100 < percent
    }

    /// One of several, by their weights.
    pub fn pick<T: Copy>(&mut self, from: &[(u64, T)]) -> T {
        let mut left = self.draw() % from.iter().map(|(weight, _)| weight).sum::<u64>();
        for (weight, value) in from {
            if left < *weight {
                return *value;
            }
            left -= weight;
        }
        from[0].1
    }
}

/// Something of the cluster that faults are done to, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Victim {
    /// `spillway-vk`.
    VirtualNode,
    /// The virtual node's containerd.
    Runtime,
    /// `kube-apiserver`.
    ApiServer,
    /// `etcd`.
    Etcd,
    /// The cable of the virtual node's machine.
    Cable,
    /// The first process of one of the node's containers or sandboxes.
    Container,
    /// The shim of one of the node's pods.
    Shim,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// SIGKILL; started again later.
    Kill,
    /// SIGTERM; started again later.
    Stop,
    /// SIGSTOP; SIGCONT later.
    Pause,
    /// Unplugged; plugged in again later.
    Cut,
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Milliseconds after the fault before; 0: at once with it.
    pub after_ms: u64,
    /// To what.
    pub victim: Victim,
    /// What.
    pub deed: Deed,
    /// Milliseconds until it is undone.
    pub lasts_ms: u64,
    /// Chooses among containers and shims.
    pub draw: u64,
}

/// The next fault.
pub fn fault(random: &mut Random) -> Fault {
    use Deed::{Cut, Kill, Pause, Stop};
    use Victim::{ApiServer, Cable, Container, Etcd, Runtime, Shim, VirtualNode};
    let (victim, deed) = random.pick(&[
        (14, (VirtualNode, Kill)),
        (6, (VirtualNode, Stop)),
        (10, (VirtualNode, Pause)),
        (10, (Runtime, Kill)),
        (6, (Runtime, Stop)),
        (7, (Runtime, Pause)),
        (5, (ApiServer, Kill)),
        (7, (ApiServer, Pause)),
        (3, (Etcd, Kill)),
        (5, (Etcd, Pause)),
        (7, (Cable, Cut)),
        (12, (Container, Kill)),
        (8, (Shim, Kill)),
    ]);
    let at_once = random.percent(25);
    let after_ms = random.between(200, 3500);
    let long = random.percent(6);
    let lasts_ms = if long { random.between(8_000, 20_000) } else { random.between(0, 3_000) };
    Fault { after_ms: if at_once { 0 } else { after_ms }, victim, deed, lasts_ms, draw: random.draw() }
}

/// What a pod does when nobody disturbs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Runs once and ends with this code.
    Once(u8),
    /// Fails so often with that code, then ends well.
    Retry(u64, u8),
    /// Ends so often with that code, then runs until it is deleted.
    Always(u64, u8),
    /// Pods of a Job: completions, exit code of each, back-off limit.
    Job(u64, u8, u64),
}

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays until the round is over.
    Stay,
    /// Deleted after so many milliseconds.
    Delete(u64),
    /// Deleted by force after so many milliseconds.
    Force(u64),
    /// As one of the two, by force or not, and made again under the same name at once.
    Replace(bool, u64),
}

/// One pod, or one Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// Its name: the number in the plan.
    pub name: String,
    /// What it does.
    pub life: Life,
    /// What is done with it.
    pub fate: Fate,
    /// Tenths of seconds that each run takes.
    pub run_tenths: u64,
    /// Init containers before it.
    pub inits: u64,
    /// Main containers.
    pub containers: u64,
    /// Seconds.
    pub grace: u64,
    /// Doesn't listen to SIGTERM.
    pub stubborn: bool,
    /// Milliseconds until the next pod is made.
    pub pause_ms: u64,
}

/// The pod of this number.
pub fn pod(random: &mut Random, number: usize) -> PodPlan {
    let code = u8::try_from(random.between(1, 120)).unwrap_or(1);
    let times = random.between(1, 2);
    let life = match random.between(0, 99) {
        0..25 => Life::Once(0),
        25..40 => Life::Once(code),
        40..57 => Life::Retry(times, code),
        57..70 => Life::Always(times, if random.percent(30) { 0 } else { code }),
        70..94 => Life::Always(0, 0),
        94..97 => Life::Job(random.between(1, 3), 0, 6),
        _ => Life::Job(1, code, 1),
    };
    let after = random.between(500, 9_000);
    let soon = random.between(0, 700);
    let forced = random.percent(50);
    let fate = match (life, random.between(0, 99)) {
        (Life::Job(..), 0..90) | (_, 0..45) => Fate::Stay,
        (Life::Job(..), _) | (_, 45..60) => Fate::Delete(after),
        (_, 60..70) => Fate::Delete(soon),
        (_, 70..78) => Fate::Force(after),
        (_, 78..84) => Fate::Force(soon),
        _ => Fate::Replace(forced, after),
    };
    PodPlan {
        name: format!("p{number:05}"),
        life,
        fate,
        run_tenths: random.between(0, 40),
        inits: random.pick(&[(7, 0), (2, 1), (1, 2)]),
        containers: random.pick(&[(7, 1), (3, 2)]),
        grace: random.pick(&[(3, 1), (4, 5), (3, 25)]),
        stubborn: random.percent(15),
        pause_ms: random.between(50, 900),
    }
}

/// Counts its runs, says when each begins and how it ends, and does what its arguments say: NAME FAILS CODE LAST TENTHS STUBBORN.
const SCRIPT: &str = r#"
d=/chaos/$UID_; mkdir -p $d; n=0; while ! mkdir $d/$1.$n; do n=$((n+1)); done 2>/dev/null
a=$(awk '$5=="/dev/termination-log"{k=split($4,p,"/"); print p[k]}' /proc/self/mountinfo)
say() { read now rest </proc/uptime; echo "$1 $UID_ $C $n $a $now $2" >>/chaos/lines; }
C=$1
end() { say end $1; exit $1; }
if [ $6 = true ]; then trap '' TERM; else trap 'end 43' TERM; fi
say start -
if [ $n -ge $2 ] && [ $4 = forever ]; then while :; do sleep 1000 & wait $!; done; fi
sleep $(($5/10)).$(($5%10)) & wait $!
if [ $n -lt $2 ]; then end $3; else end $4; fi
"#;

impl PodPlan {
    /// The spec of its pods, on this node, writing to that folder of the machine.
    pub fn spec(&self, node: &str, folder: &str) -> Value {
        let (policy, fails, code, last) = match self.life {
            Life::Once(code) | Life::Job(_, code, _) => ("Never", 0, 0, code.to_string()),
            Life::Retry(times, code) => ("OnFailure", times, code, "0".to_owned()),
            Life::Always(times, code) => ("Always", times, code, "forever".to_owned()),
        };
        let container = |name: String, fails: u64, last: &str, tenths: u64| {
            json!({
                "name": name, "image": BUSYBOX, "imagePullPolicy": "Never",
                "command": ["sh", "-c", SCRIPT, "sh", name, fails.to_string(), code.to_string(), last,
                    tenths.to_string(), self.stubborn.to_string()],
                "env": [{ "name": "UID_", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }],
                "volumeMounts": [{ "name": "chaos", "mountPath": "/chaos" }, { "name": "own", "mountPath": "/own" }],
            })
        };
        let inits: Vec<_> = (0..self.inits).map(|n| container(format!("i{n}"), 0, "0", 3)).collect();
        let mains: Vec<_> = (0..self.containers)
            .map(|n| container(format!("c{n}"), fails, &last, self.run_tenths + 5 * n))
            .collect();
        json!({
            "nodeName": node, "restartPolicy": policy, "terminationGracePeriodSeconds": self.grace,
            "automountServiceAccountToken": true, "enableServiceLinks": false,
            "initContainers": inits, "containers": mains,
            "volumes": [{ "name": "chaos", "hostPath": { "path": folder } }, { "name": "own", "emptyDir": { "medium": "Memory" } }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_plan_and_another_gives_another() {
        let plan = |seed| {
            let (mut faults, mut pods) = (Random::new(seed, 1), Random::new(seed, 2));
            let faults: Vec<_> = (0..50).map(|_| fault(&mut faults)).collect();
            (faults, (0..50).map(|number| pod(&mut pods, number)).collect::<Vec<_>>())
        };
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7).0, plan(8).0);
        assert_ne!(plan(7).1, plan(8).1);
    }

    #[test]
    fn five_hundred_faults_have_everything_in_them() {
        let mut random = Random::new(1, 1);
        let faults: Vec<_> = (0..500).map(|_| fault(&mut random)).collect();
        let kinds: std::collections::HashSet<_> =
            faults.iter().map(|fault| format!("{:?} {:?}", fault.victim, fault.deed)).collect();
        assert_eq!(kinds.len(), 13);
        assert!(
            faults.iter().any(|fault| fault.after_ms == 0)
                && faults.iter().any(|fault| fault.lasts_ms > 8_000)
        );
    }
}
