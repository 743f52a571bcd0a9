//! Why one pod waits: its place is looked for as the scheduler looks for it, and what stands in the way everywhere is said.

use super::{
    super::{
        fit::{Obstacles, Search},
        quantity::{bytes, cores},
        selector::{has, required, told},
        snapshot::{Names, Pod, ResourceId, Wish},
        state::{Cluster, Group, Machine},
        words::{amount, clipped, few, seconds_between},
    },
    Idle, OTHERS_WORDS, Reason,
};

/// For how long a scheduler may leave a pod alone before that is strange.
const SOON_S: f64 = 15.0;
pub(super) struct Answer {
    pub(super) reason: Reason,
    pub(super) why: String,
    pub(super) starts_if: Vec<String>,
}

pub(super) struct Question<'a> {
    pub(super) cluster: &'a Cluster<'a>,
    pub(super) idle: &'a Idle<'a>,
    pub(super) group: &'a Group<'a>,
    pub(super) pod: &'a Pod,
    pub(super) wish: &'a Wish,
    pub(super) names: &'a Names,
    /// The resource that decides: an accelerator, or CPU.
    pub(super) key: Option<(ResourceId, i64)>,
}

/// A machine and what is in the pod's way there.
pub(super) type Spot<'a> = (&'a Machine<'a>, Obstacles<'a>);

impl Question<'_> {
    pub(super) fn answer(&self) -> Answer {
        if let Some(answer) = self.before_the_scheduler().or_else(|| self.unanswered_claim()) {
            return answer;
        }
        let snapshot = self.cluster.snapshot;
        if !snapshot.machines_seen {
            return self.scheduler_says(Reason::Scheduler);
        }
        let search = Search::of(self.cluster, self.group, self.pod, self.wish);
        let machines = self.cluster.machines.iter();
        let spots: Vec<Spot<'_>> = machines.map(|machine| (machine, search.on(machine))).collect();
        if spots.iter().any(|(_, found)| found.none()) {
            // What pods that can't be seen hold may be the whole reason.
            let blind = snapshot.pods_only_in.is_some();
            return if blind { self.scheduler_says(Reason::Scheduler) } else { self.fits(&spots) };
        }
        let alone = search.alone();
        let never = self.never_fits(&spots).map(|answer| {
            let mut starts_if = Self::opened(&spots);
            starts_if.extend(answer.starts_if);
            Answer { starts_if, ..answer }
        });
        never.or_else(|| self.unreached(&spots)).unwrap_or_else(|| {
            let only_short: Vec<_> = spots.iter().filter(|(_, found)| found.only_short()).collect();
            if only_short.is_empty() { self.kept_off(&spots, alone) } else { self.full(&only_short, &spots) }
        })
    }

    /// Whether it is an accelerator that decides.
    fn accelerated(&self) -> bool {
        self.key.is_some_and(|(resource, _)| self.cluster.accelerators.contains(&resource))
    }

    fn before_the_scheduler(&self) -> Option<Answer> {
        let gates = &self.wish.gates;
        if let Some(gate) = gates.first() {
            return self.gated(gate).or_else(|| {
                let why =
                    format!("held back by its scheduling gate {}", few(gates.iter().map(String::as_str)));
                let starts_if = vec!["when whoever set the gate removes it".to_owned()];
                Some(Answer { reason: Reason::Gated, why, starts_if })
            });
        }
        self.preempting()
    }

    /// Others are being ended for it.
    fn preempting(&self) -> Option<Answer> {
        let node = self.wish.nominated.as_ref()?;
        let machine = self.cluster.machines.iter().find(|machine| machine.node.name == *node);
        let ending = machine.iter().flat_map(|machine| machine.pods.iter()).filter(|pod| pod.preempted);
        let ending: Vec<_> = ending.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
        let (who, are) = match ending.len() {
            // Where only its own namespace can be seen, they may be elsewhere.
            0 if self.cluster.snapshot.pods_only_in.is_none() && machine.is_some() => return None,
            0 => ("pods".to_owned(), "are"),
            1 => (few(ending.iter().map(String::as_str)), "is"),
            _ => (few(ending.iter().map(String::as_str)), "are"),
        };
        let gone = if are == "is" { "when it has ended" } else { "when they have ended" };
        Some(Answer {
            reason: Reason::Preempting,
            why: format!("{who}, of lower priority, {are} being ended on {node} for it"),
            starts_if: vec![gone.to_owned()],
        })
    }

    /// The scheduler's own words, where it has any.
    pub(super) fn scheduler_says(&self, reason: Reason) -> Answer {
        let scheduler = &self.wish.scheduler;
        let Some(said) = &self.wish.said else {
            let mut starts_if = vec![format!("when a scheduler called {scheduler} runs")];
            if scheduler != "default-scheduler" {
                starts_if.push("with another schedulerName".to_owned());
            }
            let why = format!("{scheduler} has not looked at it: does it run?");
            return Answer { reason, why, starts_if };
        };
        // What it says of preemption after that is the same again.
        let said = said
            .find(". no new claims")
            .or_else(|| said.find(". preemption:"))
            .map_or(&**said, |at| &said[..=at]);
        let why = format!("{scheduler} says: {}", clipped(said, OTHERS_WORDS));
        Answer { reason, why, starts_if: Vec::new() }
    }

    fn fits(&self, spots: &[Spot<'_>]) -> Answer {
        let age = self.pod.created.map(|created| seconds_between(created, self.cluster.snapshot.at));
        let known = age.is_none_or(|age| age > SOON_S);
        if let Some(answer) = self.unfound_claim().or_else(|| self.together(spots)) {
            return answer;
        }
        if known {
            return self.scheduler_says(Reason::Scheduler);
        }
        let open = spots.iter().filter(|(_, found)| found.none()).map(|(machine, _)| &*machine.node.name);
        let why = format!("it has only just come, and fits on {}", few(open));
        Answer { reason: Reason::Starting, why, starts_if: Vec::new() }
    }

    /// What no end of other pods would change.
    fn never_fits(&self, spots: &[Spot<'_>]) -> Option<Answer> {
        let (resource, asked) = self.key?;
        let what = amount(self.names, resource, asked);
        // A virtual node that keeps it off is none of its places; what would change that is said beside.
        let places = spots.iter().filter(|(machine, found)| !machine.is_virtual() || found.taint.is_none());
        let levels = self.cluster.levels(resource);
        let offered =
            |machine: &Machine<'_>| levels.get(machine.place).is_some_and(|level| level.allocatable > 0);
        let offers: Vec<_> = places.filter(|(machine, _)| offered(machine)).collect();
        if offers.is_empty() {
            return Some(self.not_offered(spots, resource, &what));
        }
        let holds = |(_, found): &&Spot<'_>| found.beyond.is_empty();
        if !offers.iter().any(|(_, found)| found.beyond.is_empty()) {
            return Some(self.too_large(&offers, resource, asked));
        }
        if spots.iter().filter(holds).all(|(_, found)| found.unselected) {
            let large = offers.iter().filter(|(_, found)| found.beyond.is_empty());
            let why = format!(
                "asks for {what}, and {}",
                self.unselected(&large.map(|(machine, _)| *machine).collect::<Vec<_>>())
            );
            let starts_if = vec![
                "with a selector that a machine has the labels for, or with that label on a machine"
                    .to_owned(),
            ];
            return Some(Answer { reason: Reason::NotSelected, why, starts_if });
        }
        None
    }

    fn not_offered(&self, spots: &[Spot<'_>], resource: ResourceId, what: &str) -> Answer {
        let name = self.names.name(resource);
        let sick = spots.iter().filter(|(machine, _)| {
            machine.node.capacity.get(resource) > 0 && machine.node.allocatable.get(resource) == 0
        });
        let sick: Vec<_> = sick.map(|(machine, _)| &*machine.node.name).collect();
        if !sick.is_empty() {
            let why = format!("asks for {what}; those of {} are all out of service", few(sick));
            let starts_if = vec!["when the machine's device plugin calls them healthy again".to_owned()];
            return Answer { reason: Reason::NotOffered, why, starts_if };
        }
        let vendor = name.split('/').next().unwrap_or(name);
        let others = self.cluster.accelerators.iter().filter(|other| {
            let offered = spots.iter().any(|(machine, _)| machine.node.allocatable.get(**other) > 0);
            offered && self.names.name(**other).starts_with(vendor)
        });
        let others: Vec<_> = others.map(|other| self.names.name(*other)).collect();
        let why = format!("asks for {name}, which no machine offers");
        let starts_if = if others.is_empty() {
            format!("with a machine whose device plugin offers {name}")
        } else {
            format!("if it asked for {}, which there is, or with a machine that offers {name}", few(others))
        };
        Answer { reason: Reason::NotOffered, why, starts_if: vec![starts_if] }
    }

    fn too_large(&self, offers: &[&Spot<'_>], resource: ResourceId, asked: i64) -> Answer {
        let has = |machine: &Machine<'_>, resource| machine.node.allocatable.get(resource);
        let most = offers.iter().max_by_key(|(machine, _)| has(machine, resource));
        let most = most.map_or(0, |(machine, _)| has(machine, resource));
        let what = amount(self.names, resource, asked);
        if most < asked {
            let largest = offers.iter().find(|(machine, _)| has(machine, resource) == most);
            let largest = largest.map_or("", |(machine, _)| &*machine.node.name);
            let why = if self.accelerated() {
                format!("asks for {what} on one machine, and the largest ({largest}) has {most}")
            } else {
                format!(
                    "asks for {what}, and the largest machine ({largest}) has {}",
                    amount(self.names, resource, most)
                )
            };
            let split = format!("with pods of at most {}", amount(self.names, resource, most));
            return Answer { reason: Reason::TooLarge, why, starts_if: vec![split] };
        }
        // Enough accelerators, too little beside them.
        let able = offers.iter().filter(|(machine, _)| has(machine, resource) >= asked);
        let nearest = able.min_by_key(|(_, found)| found.beyond.len());
        let Some((machine, found)) = nearest else { return self.scheduler_says(Reason::Scheduler) };
        let own = |id: ResourceId| amount(self.names, id, self.pod.requests.get(id));
        let beside: Vec<_> = found.beyond.of(self.pod).filter(|id| *id != resource).map(own).collect();
        let at_most: Vec<_> =
            found.beyond.of(self.pod).map(|id| amount(self.names, id, has(machine, id))).collect();
        let all = std::iter::once(what).chain(beside).collect::<Vec<_>>().join(" and ");
        let why = format!("asks for {all}, and {} has at most {}", machine.node.name, at_most.join(" and "));
        Answer { reason: Reason::TooLarge, why, starts_if: vec!["with a smaller request".to_owned()] }
    }

    /// Which of its demands on labels is too much.
    fn unselected(&self, machines: &[&Machine<'_>]) -> String {
        let wrong = self
            .wish
            .selector
            .iter()
            .find(|(key, value)| !machines.iter().any(|machine| has(&machine.node.labels, key, value)));
        if let Some((key, value)) = wrong {
            let elsewhere =
                self.cluster.machines.iter().find(|machine| has(&machine.node.labels, key, value));
            return match elsewhere {
                Some(machine) => format!(
                    "its node selector {key}={value} fits only machines that can't hold it, such as {}",
                    machine.node.name
                ),
                None => format!("no machine has the label {key}={value} of its node selector"),
            };
        }
        let terms =
            required(self.wish).map(|selector| selector.node_selector_terms.as_slice()).unwrap_or_default();
        let expressions = terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
        let told: Vec<_> = expressions
            .map(|one| {
                let values = one.values.as_deref().unwrap_or_default().join(",");
                format!("{} {} {values}", one.key, one.operator).trim_end().to_owned()
            })
            .collect();
        let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        let names: Vec<_> = fields.flat_map(|one| one.values.iter().flatten()).map(String::as_str).collect();
        if told.is_empty() && !names.is_empty() {
            format!("it is meant for {} alone, which can't hold it or does not exist", few(names))
        } else if told.is_empty() {
            "its node selector fits none of the machines that could hold it".to_owned()
        } else {
            format!(
                "its node affinity ({}) fits none of the machines that could hold it",
                clipped(&told.join("; "), 150)
            )
        }
    }

    /// Nothing is in the way of it but what somebody has set, or other pods.
    fn kept_off(&self, spots: &[Spot<'_>], alone: bool) -> Answer {
        let able = |(_, found): &&Spot<'_>| found.beyond.is_empty() && !found.unselected;
        let could: Vec<_> = spots.iter().filter(able).collect();
        let what = match self.key {
            Some((resource, asked)) => amount(self.names, resource, asked),
            None => "a place".to_owned(),
        };
        if could.is_empty() {
            return self.scheduler_says(Reason::Scheduler);
        }
        let near: Vec<_> =
            could.iter().filter(|(_, found)| !found.cordoned && found.taint.is_none()).collect();
        let starts_if = Self::opened(spots);
        if near.is_empty() {
            let cordoned: Vec<_> = could
                .iter()
                .filter(|(_, found)| found.cordoned)
                .map(|(machine, _)| &*machine.node.name)
                .collect();
            let mut taints: Vec<(String, Vec<&str>)> = Vec::new();
            for (machine, found) in &could {
                let Some(taint) = found.taint.filter(|_| !found.cordoned) else { continue };
                let taint = told(taint);
                match taints.iter_mut().find(|(known, _)| *known == taint) {
                    Some((_, machines)) => machines.push(&machine.node.name),
                    None => taints.push((taint, vec![&machine.node.name])),
                }
            }
            let mut parts = Vec::new();
            if !cordoned.is_empty() {
                parts.push(format!("{} cordoned", is_are(&cordoned)));
            }
            for (taint, machines) in taints {
                let have = if machines.len() == 1 { "has" } else { "have" };
                parts.push(format!("{} {have} the taint {taint}, which it does not tolerate", few(machines)));
            }
            let why = format!("asks for {what}: of the machines that could hold it {}", parts.join(", and "));
            return Answer { reason: Reason::KeptOff, why, starts_if };
        }
        let machines = few(near.iter().map(|(machine, _)| &*machine.node.name));
        let called = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
        let mut starts_if = starts_if;
        let why = if let Some((port, other)) = near.iter().find_map(|(_, found)| found.port) {
            starts_if.push(format!("if {} ended, or with another port", called(other)));
            format!(
                "{} has the host's port {port} that it takes; it could only run on {machines}",
                called(other)
            )
        } else if let Some(other) = near.iter().find_map(|(_, found)| found.apart) {
            let whose = if other.refuses.is_empty() { "its pod anti-affinity" } else { "pod anti-affinity" };
            format!("{whose} keeps it away from {}, and with it off {machines}", called(other))
        } else if near.iter().any(|(_, found)| found.lonely) {
            let wanted = self.wanted();
            if alone {
                starts_if.push("when such a pod runs".to_owned());
                format!("no pod runs that its pod affinity wants to be near ({wanted})")
            } else {
                format!("the pods that its pod affinity wants to be near ({wanted}) are not on {machines}")
            }
        } else if let Some(rule) =
            self.wish.spread.iter().find(|rule| rule.when_unsatisfiable == "DoNotSchedule")
        {
            format!(
                "its topology spread constraint (maxSkew {} of {}) does not allow another pod on {machines}",
                rule.max_skew, rule.topology_key
            )
        } else {
            return self.scheduler_says(Reason::Scheduler);
        };
        starts_if
            .push("with another machine that could hold it, or with a rule that only prefers".to_owned());
        Answer { reason: Reason::Neighbours, why, starts_if }
    }

    /// The labels of the pods that its pod affinity wants to be near.
    fn wanted(&self) -> String {
        let affinity = self.wish.affinity.pod_affinity.as_ref();
        let terms =
            affinity.and_then(|all| all.required_during_scheduling_ignored_during_execution.as_deref());
        let selectors = terms.unwrap_or_default().iter().filter_map(|term| term.label_selector.as_ref());
        let told: Vec<_> = selectors
            .flat_map(|selector| {
                let labels =
                    selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
                let more = selector.match_expressions.iter().flatten().map(|one| {
                    format!(
                        "{} {} {}",
                        one.key,
                        one.operator,
                        one.values.as_deref().unwrap_or_default().join(",")
                    )
                });
                labels.chain(more).collect::<Vec<_>>()
            })
            .collect();
        clipped(&told.join("; "), 150)
    }

    /// What a machine has too little of.
    fn lacks(&self, machine: &Machine<'_>, found: &Obstacles<'_>) -> String {
        let short = found.short.of(self.pod).map(|id| match id {
            ResourceId::PODS => "it takes no more pods".to_owned(),
            _ => format!(
                "only {} of the {} it asks for",
                amount_of(id, machine.free(id)),
                amount(self.names, id, self.pod.requests.get(id))
            ),
        });
        short.collect::<Vec<_>>().join(" and ")
    }

    fn full(&self, open: &[&Spot<'_>], spots: &[Spot<'_>]) -> Answer {
        let own: Vec<_> = open.iter().filter(|(machine, _)| !machine.is_virtual()).collect();
        let rented: Vec<_> = open.iter().filter(|(machine, _)| machine.is_virtual()).collect();
        let Some((resource, asked)) = self.key else { return self.scheduler_says(Reason::Full) };
        let what = amount(self.names, resource, asked);
        let unit = |count: i64| amount(self.names, resource, count);
        let levels = self.cluster.levels(resource);
        let level = |machine: &Machine<'_>| levels.get(machine.place).copied().unwrap_or_default();
        let left = |machine: &Machine<'_>| level(machine).free.max(0);
        let free = own.iter().map(|(machine, _)| left(machine)).fold(0, i64::saturating_add);
        let all = own.iter().map(|(machine, _)| level(machine).allocatable).fold(0, i64::saturating_add);
        let roomiest = own.iter().max_by_key(|(machine, _)| left(machine));
        let most = roomiest.map_or(0, |(machine, _)| machine.free(resource));
        let place = roomiest.map_or("", |(machine, _)| &*machine.node.name);
        let accelerated = self.accelerated();
        let its_place = self.pod.requests.place(resource);
        let lacks = |found: &Obstacles<'_>| its_place.is_some_and(|place| found.short.has(place));
        let beside: Vec<_> = own.iter().filter(|(_, found)| !lacks(found)).collect();
        let (reason, mut why) = if own.is_empty() {
            (Reason::Full, format!("asks for {what}"))
        } else if let Some((machine, found)) = beside.iter().min_by_key(|(_, found)| found.short.len()) {
            let short = self.lacks(machine, found);
            let on = &machine.node.name;
            let has = machine.free(resource);
            let others = beside.len() - 1;
            let others = if others > 0 { format!(", and the like on {others} more") } else { String::new() };
            let is = if has == 1 || !accelerated { "is" } else { "are" };
            (
                Reason::NothingBeside,
                format!("asks for {what}: {} {is} free on {on}, but {short}{others}", unit(has)),
            )
        } else if !accelerated {
            (
                Reason::Full,
                format!("asks for {what}: the most that is free on one machine is {} ({place})", unit(most)),
            )
        } else if free >= asked {
            let why = format!(
                "asks for {what} on one machine: {free} are free, but at most {most} on one ({place})"
            );
            (Reason::Scattered, why)
        } else {
            let (none, verb) = match free {
                0 => ("none".to_owned(), "is"),
                1 => ("1".to_owned(), "is"),
                _ => (free.to_string(), "are"),
            };
            (Reason::Full, format!("asks for {what}: {none} of {all} {verb} free"))
        };
        why.push_str(&narrowed(&own, spots));
        for (machine, found) in &rented {
            let short = found
                .short
                .of(self.pod)
                .map(|id| amount(self.names, id, machine.free(id)))
                .collect::<Vec<_>>();
            why = format!("{why}; {} offers only {} more", machine.node.name, short.join(" and "));
        }
        let mut starts_if = self.relieved(open);
        let relieved = !starts_if.is_empty();
        starts_if.extend(Self::opened(spots));
        if reason == Reason::NothingBeside {
            starts_if.push("with a smaller request of that".to_owned());
        } else if accelerated && most > 0 && asked > 1 {
            starts_if.push(format!("with pods of at most {}", unit(most)));
        }
        if !relieved {
            starts_if.extend(self.displaced(open));
        }
        if self.wish.polite && self.could_preempt(open) {
            starts_if.push(
                "with a priority class that preempts: others of lower priority are in its place".to_owned(),
            );
        }
        if starts_if.is_empty() {
            starts_if.push(format!(
                "when {} free on one machine",
                if asked == 1 || !accelerated { format!("{what} is") } else { format!("{what} are") }
            ));
        }
        Answer { reason, why, starts_if }
    }
}

/// Why only these machines are looked at, where there are more.
fn narrowed(own: &[&&Spot<'_>], spots: &[Spot<'_>]) -> String {
    let mut told = String::new();
    let names = || few(own.iter().map(|(machine, _)| &*machine.node.name));
    let others = || spots.iter().filter(|(machine, _)| !machine.is_virtual());
    if !own.is_empty() && others().any(|(_, found)| found.unselected) {
        told = format!("; its node selector or affinity allows only {}", names());
    }
    if spots.iter().any(|(_, found)| found.unreached) {
        told = format!("{told}; what it claims can only be reached from {}", names());
    }
    let barred = others().filter(|(_, found)| found.minds_others()).count();
    if barred > 0 && !own.is_empty() {
        let all = own.len() + barred;
        told = format!(
            "{told}; what it says of other pods, or they of it, allows {} of {all} machines",
            own.len()
        );
    }
    told
}

fn amount_of(resource: ResourceId, free: i64) -> String {
    match resource {
        ResourceId::CPU => cores(free),
        ResourceId::MEMORY => bytes(free),
        _ => free.to_string(),
    }
}

fn is_are(names: &[&str]) -> String {
    format!("{} {}", few(names.iter().copied()), if names.len() == 1 { "is" } else { "are" })
}
