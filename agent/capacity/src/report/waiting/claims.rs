//! Volumes and devices that a pod claims: what is missing of them, and who could change that.

use super::{
    super::{
        snapshot::{ClaimName, ClaimOf, ClaimState},
        words::few,
    },
    Reason,
    reason::{Answer, Question, Spot},
};

impl ClaimOf {
    fn reason(self) -> Reason {
        match self {
            Self::Volume => Reason::Volume,
            Self::Devices => Reason::Claim,
        }
    }

    /// What the object is called.
    fn words(self) -> &'static str {
        match self {
            Self::Volume => "volume claim",
            Self::Devices => "claim of devices",
        }
    }

    fn class_words(self) -> &'static str {
        match self {
            Self::Volume => "storage class",
            Self::Devices => "device class",
        }
    }
}

impl Question<'_> {
    fn claims(&self) -> impl Iterator<Item = (&ClaimName, Option<&ClaimState>)> {
        self.wish.claims.iter().zip(self.cluster.snapshot.claims_of(self.pod))
    }

    /// What is in the way on every machine: a claim that nothing answers.
    pub(super) fn unanswered_claim(&self) -> Option<Answer> {
        self.claims().find_map(|(claim, state)| {
            let (of, name) = (claim.of, claim.name.as_deref());
            let words = of.words();
            let answer = |why: String, starts_if: String| {
                Some(Answer { reason: of.reason(), why, starts_if: vec![starts_if] })
            };
            let Some(name) = name else {
                return answer(
                    format!("its {words} has not been made of its template yet"),
                    "when the controller manager has made it".to_owned(),
                );
            };
            let own = format!("its {words} {name}");
            match state? {
                ClaimState::Missing => answer(format!("{own} does not exist"), format!("when somebody makes {name}")),
                ClaimState::Lost => answer(
                    format!("{own} is bound to a volume that is gone"),
                    "with a new claim: what the volume held is lost, or has to come from a copy".to_owned(),
                ),
                ClaimState::NoClass(class) => answer(
                    format!("{own} names the {} {class}, which does not exist", of.class_words()),
                    format!("when an admin makes the {} {class}", of.class_words()),
                ),
                ClaimState::Classless => answer(
                    format!("{own} is not bound: it names no storage class, none is the default, and no volume fits it"),
                    "when an admin makes such a volume, or with a claim that names a storage class".to_owned(),
                ),
                ClaimState::Unbound { class, by } => answer(
                    format!("{own} is not bound: its storage class {class} has no volume for it yet"),
                    format!("when {by} has made the volume"),
                ),
                ClaimState::Well | ClaimState::WaitsForMachine { .. } | ClaimState::Within(_) => None,
            }
        })
    }

    /// What is claimed is on other machines than those that could hold the pod.
    pub(super) fn unreached(&self, spots: &[Spot<'_>]) -> Option<Answer> {
        let could = |(_, found): &&Spot<'_>| found.beyond.is_empty() && !found.unselected;
        let mut could = spots.iter().filter(could).peekable();
        could.peek()?;
        if !could.all(|(_, found)| found.unreached) {
            return None;
        }
        let within =
            |(_, state): &(&ClaimName, Option<&ClaimState>)| matches!(state, Some(ClaimState::Within(_)));
        let (claim, _) = self.claims().find(within)?;
        let reach = spots.iter().filter(|(_, found)| !found.unreached);
        let reach: Vec<_> = reach.map(|(machine, _)| &*machine.node.name).collect();
        let name = claim.name.as_deref().unwrap_or_default();
        let what = match claim.of {
            ClaimOf::Volume => format!("the volume of its claim {name}"),
            ClaimOf::Devices => format!("what its claim {name} was given"),
        };
        let why = if reach.is_empty() {
            format!("{what} can be reached from no machine that is there")
        } else {
            format!("{what} can be reached from {} only, which can't hold it", few(reach.iter().copied()))
        };
        let starts_if = match claim.of {
            ClaimOf::Volume => {
                "with a machine where the volume is that could hold it, or with a volume elsewhere"
            }
            ClaimOf::Devices => "with a claim of its own",
        };
        Some(Answer { reason: claim.of.reason(), why, starts_if: vec![starts_if.to_owned()] })
    }

    /// It fits, and yet waits: what it claims is looked for together with a machine, and none has it.
    pub(super) fn unfound_claim(&self) -> Option<Answer> {
        let (claim, class) = self.claims().find_map(|(claim, state)| match state {
            Some(ClaimState::WaitsForMachine { class }) => Some((claim, class)),
            _ => None,
        })?;
        let said = self.wish.said.as_deref()?;
        let name = claim.name.as_deref().unwrap_or_default();
        let (about, why, starts_if) = match claim.of {
            ClaimOf::Volume => (
                ["volume", "storage"],
                format!(
                    "its volume claim {name} is not bound: no machine that could hold it gets a volume of the storage class {class}"
                ),
                "when there is such a volume, or room for one, in reach of a machine that could hold it",
            ),
            ClaimOf::Devices => (
                ["claim", "device"],
                format!(
                    "its claim of devices {name} is not met: no machine that could hold it has enough free devices of the class {class}"
                ),
                "when such devices are free on one machine, or with a machine that has them",
            ),
        };
        let said = said.to_lowercase();
        about.iter().any(|word| said.contains(word)).then(|| Answer {
            reason: claim.of.reason(),
            why,
            starts_if: vec![starts_if.to_owned()],
        })
    }
}
