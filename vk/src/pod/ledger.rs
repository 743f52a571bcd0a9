//! Who holds how much of the node, and who waits for more: what is asked of a pod before it is taken in or grows, as a kubelet's
//! admission asks it (`pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/allocation`). Nothing is kept: it is filled again from the pods.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tokio::sync::Notify;

use super::{
    admission::Refusal,
    resources::{self, Amounts, milli, whole},
};
use crate::provider::runtime::QosClass;

/// What a pod asks for, what a node has, or sums of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// By resource: CPU in thousandths, bytes, pieces. Wide enough that no sum of what pods can ask for ends at a limit, from where what is
    /// given back would not lead back.
    amounts: BTreeMap<String, i128>,
    /// The CPU, in thousandths, that is asked for by burstable pods.
    burstable_cpu: i128,
}

impl Need {
    /// Of a pod.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let asked = containers.filter_map(|container| container.resources.as_ref()).chain(&spec.resources);
        let names = asked.filter_map(|resources| resources.requests.as_ref()).flat_map(|r| r.keys());
        let names = names.chain(spec.overhead.iter().flat_map(|overhead| overhead.keys()));
        let mut amounts: BTreeMap<String, i128> =
            names.map(|name| (name.clone(), i128::from(resources::request(spec, name)))).collect();
        amounts.retain(|_, amount| *amount > 0);
        amounts.insert("pods".to_owned(), 1);
        let is_burstable = resources::qos(spec) == QosClass::Burstable;
        let burstable_cpu = amounts.get("cpu").copied().filter(|_| is_burstable).unwrap_or(0);
        Self { amounts, burstable_cpu }
    }

    /// Of a node.
    pub(crate) fn capacity(amounts: &Amounts) -> Self {
        let amount = |(name, quantity): (&String, _)| {
            let unit = if name == "cpu" { milli } else { whole };
            Some((name.clone(), i128::from(unit(quantity)?)))
        };
        Self { amounts: amounts.iter().filter_map(amount).collect(), burstable_cpu: 0 }
    }

    fn get(&self, name: &str) -> i128 {
        self.amounts.get(name).copied().unwrap_or(0)
    }

    fn add(&mut self, other: &Self) {
        for (name, amount) in &other.amounts {
            let sum = self.get(name).saturating_add(*amount);
            self.amounts.insert(name.clone(), sum);
        }
        self.burstable_cpu = self.burstable_cpu.saturating_add(other.burstable_cpu);
    }

    fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.amounts {
            let rest = self.get(name).saturating_sub(*amount);
            self.amounts.insert(name.clone(), rest);
        }
        self.burstable_cpu = self.burstable_cpu.saturating_sub(other.burstable_cpu);
    }

    /// What this has more of than another.
    fn beyond(&self, other: &Self) -> Self {
        let more = |(name, amount): (&String, &i128)| (name.clone(), amount.saturating_sub(other.get(name)));
        let amounts = self.amounts.iter().map(more).filter(|(_, amount)| *amount > 0).collect();
        Self { amounts, burstable_cpu: 0 }
    }

    /// In the order in which a kubelet looks.
    fn names(&self) -> impl Iterator<Item = &str> {
        let first = ["pods", "cpu", "memory", "ephemeral-storage"];
        let others = self.amounts.keys().map(String::as_str).filter(move |name| !first.contains(name));
        first.into_iter().filter(|name| self.amounts.contains_key(*name)).chain(others)
    }

    /// The first resource of which there is not enough beside what is used.
    fn lacks(&self, used: &Self, capacity: &Self) -> Option<Lack> {
        let short = |name: &&str| self.get(name) > capacity.get(name).saturating_sub(used.get(name));
        let name = self.names().find(short)?;
        Some(Lack {
            name: name.to_owned(),
            requested: self.get(name),
            used: used.get(name),
            capacity: capacity.get(name),
        })
    }

    /// Why the node could never give so much; a kubelet's text.
    pub(crate) fn infeasible(&self, capacity: &Self) -> Option<String> {
        let short = |name: &&str| self.get(name) > capacity.get(name);
        let name = ["memory", "cpu"].into_iter().find(short)?;
        Some(format!(
            "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
            self.get(name),
            capacity.get(name)
        ))
    }
}

/// What there is not enough of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    name: String,
    requested: i128,
    used: i128,
    capacity: i128,
}

impl Lack {
    /// As a pod is refused for it.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal { reason: format!("OutOf{}", self.name), message: self.to_string() }
    }
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, requested, used, capacity } = self;
        write!(
            f,
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

/// Who of those that wait comes first: the smaller.
type Rank = (Reverse<i32>, bool, u64);

struct Waiter {
    need: Need,
    rank: Rank,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct Books {
    held: BTreeMap<String, Need>,
    /// Of all that is held.
    total: Need,
    waiting: BTreeMap<String, Waiter>,
    /// Counts those who began to wait.
    turn: u64,
}

/// By pod UID.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Books>);

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod has this already, whatever there is.
    pub(crate) fn hold(&self, uid: &str, need: Need) {
        self.books().put(uid, need);
    }

    /// Takes a pod in, if there is room for it.
    pub(crate) fn admit(&self, uid: &str, need: Need, capacity: &Need) -> Result<(), Lack> {
        let mut books = self.books();
        if let Some(lack) = need.lacks(&books.used_by_others(uid), capacity) {
            return Err(lack);
        }
        books.put(uid, need);
        Ok(())
    }

    /// Gives a pod more, or less. Without room for it, the pod waits and `wake` is told when there may be: those of higher priority
    /// first, then guaranteed ones, then those who waited longest.
    pub(crate) fn resize(
        &self,
        pod: &Pod,
        need: Need,
        capacity: &Need,
        wake: &Arc<Notify>,
    ) -> Result<(), Lack> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut books = self.books();
        let spec = pod.spec.as_ref();
        let since = books.waiting.get(&uid).map_or(books.turn, |waiter| waiter.rank.2);
        let guaranteed = spec.is_some_and(|spec| resources::qos(spec) == QosClass::Guaranteed);
        let rank = (Reverse(spec.and_then(|spec| spec.priority).unwrap_or(0)), !guaranteed, since);
        let before = books.held.get(&uid).cloned().unwrap_or_default();
        let mut used = books.used_by_others(&uid);
        if !need.beyond(&before).amounts.is_empty() {
            used.add(&books.promised(&uid, rank, capacity));
        }
        if let Some(lack) = need.lacks(&used, capacity) {
            books.turn += 1;
            books.waiting.insert(uid, Waiter { need, rank, wake: Arc::clone(wake) });
            return Err(lack);
        }
        books.waiting.remove(&uid);
        let shrinks = !before.beyond(&need).amounts.is_empty();
        books.put(&uid, need);
        if shrinks {
            books.wake();
        }
        Ok(())
    }

    /// What burstable pods weigh together.
    pub(crate) fn burstable_shares(&self) -> u64 {
        resources::shares(i64::try_from(self.books().total.burstable_cpu).unwrap_or(i64::MAX))
    }

    /// The pod does not want more any longer.
    pub(crate) fn withdraw(&self, uid: &str) {
        let mut books = self.books();
        if books.waiting.remove(uid).is_some() {
            books.wake();
        }
    }

    /// The pod has ended.
    pub(crate) fn free(&self, uid: &str) {
        let mut books = self.books();
        books.waiting.remove(uid);
        if books.remove(uid) {
            books.wake();
        }
    }
}

impl Books {
    fn used_by_others(&self, uid: &str) -> Need {
        let mut used = self.total.clone();
        if let Some(own) = self.held.get(uid) {
            used.subtract(own);
        }
        used
    }

    fn put(&mut self, uid: &str, need: Need) {
        self.remove(uid);
        self.total.add(&need);
        self.held.insert(uid.to_owned(), need);
    }

    /// Whether it held anything.
    fn remove(&mut self, uid: &str) -> bool {
        let held = self.held.remove(uid);
        if let Some(need) = &held {
            self.total.subtract(need);
        }
        held.is_some()
    }

    /// What those who come before this one will take as soon as they look.
    fn promised(&self, uid: &str, rank: Rank, capacity: &Need) -> Need {
        let mut before: Vec<_> =
            self.waiting.iter().filter(|(other, waiter)| *other != uid && waiter.rank < rank).collect();
        before.sort_by_key(|(_, waiter)| waiter.rank);
        let mut used = self.used_by_others("");
        let mut promised = Need::default();
        for (other, waiter) in before {
            let more = waiter.need.beyond(self.held.get(other).unwrap_or(&Need::default()));
            if more.lacks(&used, capacity).is_none() {
                used.add(&more);
                promised.add(&more);
            }
        }
        promised
    }

    fn wake(&self) {
        for waiter in self.waiting.values() {
            waiter.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, cpu: &str, priority: i32) -> Pod {
        serde_json::from_value(
            json!({ "metadata": { "uid": uid }, "spec": { "priority": priority, "containers": [
            { "name": "c", "resources": { "requests": { "cpu": cpu, "x.y/z": "1" } } },
        ] } }),
        )
        .unwrap()
    }

    fn need(cpu: &str) -> Need {
        Need::of(pod("", cpu, 0).spec.as_ref().unwrap())
    }

    fn capacity(cpu: &str) -> Need {
        let amounts = [("cpu", cpu), ("pods", "3"), ("x.y/z", "9"), ("memory", "1Gi")];
        Need::capacity(
            &amounts
                .map(|(name, amount)| {
                    let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(amount.to_owned());
                    (name.to_owned(), quantity)
                })
                .into(),
        )
    }

    #[test]
    fn there_is_room_until_there_is_none() {
        let ledger = Ledger::default();
        assert_eq!(ledger.admit("a", need("1500m"), &capacity("2")), Ok(()));
        // The same pod again is no other.
        assert_eq!(ledger.admit("a", need("1500m"), &capacity("2")), Ok(()));
        let refusal = ledger.admit("b", need("501m"), &capacity("2")).unwrap_err().refusal();
        assert_eq!(refusal.reason, "OutOfcpu");
        assert_eq!(
            refusal.message,
            "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000"
        );
        ledger.free("a");
        for uid in ["b", "c", "d"] {
            assert_eq!(ledger.admit(uid, need("10m"), &capacity("2")), Ok(()));
        }
        assert_eq!(ledger.admit("e", need("10m"), &capacity("2")).unwrap_err().refusal().reason, "OutOfpods");
    }

    #[test]
    fn burstable_pods_weigh_as_much_as_they_ask_for_together() {
        let ledger = Ledger::default();
        assert_eq!(ledger.burstable_shares(), 2);
        ledger.hold("a", need("1500m"));
        ledger.hold("b", need("500m"));
        let guaranteed = json!({ "containers": [
            { "name": "c", "resources": {
                "requests": { "cpu": "4", "memory": "1Gi" }, "limits": { "cpu": "4", "memory": "1Gi" },
            } },
        ] });
        ledger.hold("c", Need::of(&serde_json::from_value(guaranteed).unwrap()));
        assert_eq!(ledger.burstable_shares(), 2048);
        ledger.resize(&pod("a", "1", 0), need("1"), &capacity("9"), &Arc::default()).unwrap();
        assert_eq!(ledger.burstable_shares(), 1536);
        ledger.free("a");
        ledger.free("b");
        assert_eq!(ledger.burstable_shares(), 2);
    }

    #[test]
    fn what_the_node_does_not_offer_is_lacking() {
        let mut without = capacity("2");
        without.amounts.remove("x.y/z");
        let refusal = Ledger::default().admit("a", need("1"), &without).unwrap_err().refusal();
        assert_eq!(refusal.reason, "OutOfx.y/z");
    }

    #[test]
    fn impossible_is_said_at_once() {
        assert_eq!(
            need("3").infeasible(&capacity("2")).as_deref(),
            Some("Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000")
        );
        assert_eq!(need("2").infeasible(&capacity("2")), None);
    }

    #[tokio::test]
    async fn those_who_wait_are_served_by_rank() {
        let ledger = Ledger::default();
        let all = capacity("2");
        for uid in ["low", "high", "big"] {
            ledger.hold(uid, need(if uid == "big" { "1800m" } else { "100m" }));
        }
        let wake: Arc<Notify> = Arc::default();
        let ask = |uid: &str, cpu: &str, priority| {
            ledger.resize(&pod(uid, cpu, priority), need(cpu), &all, &wake).is_ok()
        };
        assert!(!ask("low", "600m", 0));
        assert!(!ask("high", "1200m", 5));
        // Less is always granted, and those who wait are told.
        assert!(ask("big", "400m", 0));
        wake.notified().await;
        assert!(!ask("low", "600m", 0), "it is promised to another");
        assert!(ask("high", "1200m", 5));
        assert!(!ask("low", "600m", 0));
        ledger.free("big");
        assert!(ask("low", "600m", 0));
    }
}
