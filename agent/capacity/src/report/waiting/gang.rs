//! Pods that start together or not at all: whether so many fit now, and what those who schedule them say.

use super::{
    super::{
        snapshot::{Gang, Member},
        words::clipped,
    },
    OTHERS_WORDS, Reason, Waiting,
    reason::{Answer, Question, Spot},
};

/// What helps where Kueue has its say.
const KUEUE_ADMITS: &str = "when Kueue admits it: when its queue has quota left, or gets more";

impl Gang {
    /// That Kueue holds it back.
    fn unadmitted(&self) -> String {
        let queue = self.queue.iter().map(|queue| format!(" from its queue {queue}"));
        let said = self.said.iter().map(|said| format!(": {}", clipped(said, OTHERS_WORDS)));
        format!("Kueue has not admitted it{}", queue.chain(said).collect::<String>())
    }

    /// What Kueue holds back before it has any pods: nothing where pods wait that are told of themselves.
    pub(super) fn without_pods(&self, namespace: &str, owner: &str) -> Waiting {
        Waiting {
            namespace: namespace.to_owned(),
            pod: None,
            owner: Some(owner.to_owned()),
            pods: None,
            asks: String::new(),
            resource: None,
            amount: 0,
            since: self.since,
            waits_s: None,
            reason: Reason::Gated,
            why: self.unadmitted(),
            starts_if: vec![KUEUE_ADMITS.to_owned()],
        }
    }
}

impl Question<'_> {
    fn gang(&self, member: Member) -> Option<&Gang> {
        self.cluster.snapshot.beside.gangs.get(&(self.pod.namespace.clone(), member))
    }

    /// It has a gate of Kueue's, or of somebody else.
    pub(super) fn gated(&self, gate: &str) -> Option<Answer> {
        if !gate.starts_with("kueue.") {
            return None;
        }
        let itself = Member::Owner(format!("Pod/{}", self.pod.name).into());
        let maker = self.pod.owner.clone().map(Member::Owner);
        let gang = self.gang(itself).or_else(|| self.gang(maker?));
        let queue = self.pod.labels.get("kueue.x-k8s.io/queue-name");
        let why = match gang {
            Some(gang) => gang.unadmitted(),
            None => Gang { queue: queue.map(ToString::to_string), ..Gang::default() }.unadmitted(),
        };
        Some(Answer { reason: Reason::Gated, why, starts_if: vec![KUEUE_ADMITS.to_owned()] })
    }

    /// One fits, but not as many as have to start together.
    pub(super) fn together(&self, spots: &[Spot<'_>]) -> Option<Answer> {
        let gang = self.gang(Member::Group(self.wish.group.clone()?))?;
        let missing = gang.pods?.saturating_sub(gang.running);
        let open = spots.iter().filter(|(_, found)| found.none());
        let fit = open.map(|(machine, _)| self.times(machine)).fold(0, i64::saturating_add);
        if fit < missing {
            let run = if gang.running > 0 { format!(", {} run", gang.running) } else { String::new() };
            let why = format!(
                "its {} starts {} pods together{run}, and only {fit} more such as this {} now",
                gang.name,
                gang.pods.unwrap_or_default(),
                if fit == 1 { "fits" } else { "fit" }
            );
            let starts_if =
                vec![format!("when {missing} such pods fit at once"), "with a smaller minMember".to_owned()];
            return Some(Answer { reason: Reason::Gang, why, starts_if });
        }
        let said = gang.said.as_ref()?;
        let why =
            format!("{} says of its {}: {}", self.wish.scheduler, gang.name, clipped(said, OTHERS_WORDS));
        Some(Answer { reason: Reason::Gang, why, starts_if: Vec::new() })
    }
}
