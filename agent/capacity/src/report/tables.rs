//! The report as tables.

use std::collections::HashMap;

use super::{
    Holder, Pool, Report, Stranded, VirtualNode, Waiting,
    pools::float,
    quantity::{bytes, cores},
    words::{few, lasting},
};
use crate::output::{Column, Table};

impl Report {
    /// What an admin should see first stands first; what is empty is left out.
    pub fn tables(&self) -> Vec<Table> {
        self.tables_with(self.strandings())
    }

    /// The same, with machines alike in one line.
    pub fn brief_tables(&self) -> Vec<Table> {
        self.tables_with(self.brief_strandings())
    }

    fn tables_with(&self, strandings: Table) -> Vec<Table> {
        let tables =
            [self.pools(), self.virtual_nodes(), self.holders(), strandings, self.waits(), self.gaps()];
        tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
    }

    fn pools(&self) -> Table {
        Table {
            title: "DEDICATED: machines that you own".to_owned(),
            columns: vec![
                Column::text("RESOURCE"),
                Column::text("MODEL"),
                Column::number("NODES"),
                Column::number("CAPACITY").wide(),
                Column::number("ALLOCATABLE"),
                Column::number("REQUESTED").wide(),
                Column::number("ALLOCATED"),
                Column::number("USED"),
                Column::number("IDLE"),
                Column::number("FREE"),
                Column::number("STRANDED"),
                Column::number("WAITING"),
                Column::text("LARGEST POD"),
                Column::text("OF THESE TOGETHER").wide(),
                Column::text("FITS NOW").wide(),
                Column::number("FRAGMENTED").wide(),
                Column::number("CPU FREE").wide(),
                Column::number("MEMORY FREE").wide(),
                Column::number("IDLE COST/H").wide(),
            ],
            rows: self.dedicated.iter().map(Pool::row).collect(),
        }
    }

    fn virtual_nodes(&self) -> Table {
        Table {
            title: "SERVERLESS: limits of virtual nodes, not machines; never added to the above".to_owned(),
            columns: vec![
                Column::text("NODE"),
                Column::text("PROVIDER"),
                Column::text("RESOURCE"),
                Column::number("CAPACITY").wide(),
                Column::number("LIMIT"),
                Column::number("REQUESTED").wide(),
                Column::number("ALLOCATED"),
                Column::number("USED"),
                Column::number("LARGEST POD"),
                Column::text("STATE"),
            ],
            rows: self.serverless.iter().flat_map(VirtualNode::rows).collect(),
        }
    }

    fn holders(&self) -> Table {
        Table {
            title: match self.currency {
                Some(currency) => {
                    format!("IDLE: pods that hold accelerators and do nothing with them; costs in {currency}")
                }
                None => "IDLE: pods that hold accelerators and do nothing with them".to_owned(),
            },
            columns: vec![
                Column::text("NAMESPACE"),
                Column::text("POD"),
                Column::text("OWNER").wide(),
                Column::text("NODE"),
                Column::text("RESOURCE"),
                Column::number("HOLDS"),
                Column::number("IDLE FOR"),
                Column::text("SINCE").wide(),
                Column::number("COST/H"),
                Column::text("HOW IT SHOWS"),
            ],
            rows: self.idle.iter().map(Holder::row).collect(),
        }
    }

    fn strandings(&self) -> Table {
        Table {
            title: "STRANDED: free, but no pod can use it".to_owned(),
            columns: vec![
                Column::text("NODE"),
                Column::text("RESOURCE"),
                Column::number("STRANDED"),
                Column::number("FREE"),
                Column::text("WHY"),
            ],
            rows: self
                .stranded
                .iter()
                .map(|one| {
                    let numbers = [one.devices, one.free].map(|number| number.to_string());
                    let [devices, free] = numbers;
                    vec![one.node.clone(), one.resource.clone(), devices, free, one.why.clone()]
                })
                .collect(),
        }
    }

    fn brief_strandings(&self) -> Table {
        let mut alike: Vec<Vec<&Stranded>> = Vec::new();
        let mut places: HashMap<_, usize> = HashMap::new();
        for one in &self.stranded {
            let key = (&one.resource, one.devices, one.free, &one.why);
            let place = *places.entry(key).or_insert(alike.len());
            if place == alike.len() {
                alike.push(Vec::new());
            }
            alike[place].push(one);
        }
        let row = |all: Vec<&Stranded>| {
            let sum = |of: fn(&Stranded) -> i64| all.iter().map(|one| of(one)).fold(0, i64::saturating_add);
            let first = all.first()?;
            let why = if all.len() > 1 { format!("on each: {}", first.why) } else { first.why.clone() };
            Some(vec![
                few(all.iter().map(|one| one.node.as_str())),
                first.resource.clone(),
                sum(|one| one.devices).to_string(),
                sum(|one| one.free).to_string(),
                why,
            ])
        };
        Table { rows: alike.into_iter().filter_map(row).collect(), ..self.strandings() }
    }

    fn gaps(&self) -> Table {
        Table {
            title: "NOT SEEN: and what would show it".to_owned(),
            columns: vec![Column::text("WHAT")],
            rows: self.not_seen.iter().chain(&self.price_notes).map(|gap| vec![gap.clone()]).collect(),
        }
    }

    fn waits(&self) -> Table {
        Table {
            title: "WAITING: and why".to_owned(),
            columns: vec![
                Column::text("NAMESPACE"),
                Column::text("POD"),
                Column::number("PODS"),
                Column::text("ASKS FOR"),
                Column::number("FOR"),
                Column::sentence("WHY"),
                Column::sentence("WOULD START"),
            ],
            rows: self.waiting.iter().map(Waiting::row).collect(),
        }
    }
}

fn percent(part: f64, whole: i64) -> String {
    if whole <= 0 { String::new() } else { format!(" ({:.0}%)", 100.0 * part / float(whole)) }
}

fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "?".to_owned())
}

fn money(amount: Option<f64>) -> String {
    or_unknown(amount.map(|amount| format!("{amount:.2}")))
}

impl Pool {
    fn row(&self) -> Vec<String> {
        let model = self.model.clone().unwrap_or_else(|| "-".to_owned());
        let accelerated = self.resource != "cpu";
        let shared = if self.shares_per_device > 1 {
            format!(", {} shares each", self.shares_per_device)
        } else {
            String::new()
        };
        let say = |count: i64| {
            if accelerated { count.to_string() } else { format!("{:.1}", float(count) / 1000.0) }
        };
        let number = |count: i64| format!("{}{}", say(count), percent(float(count), self.allocatable));
        let used = self.used.map(|used| {
            let used = if accelerated { used } else { used / 1000.0 };
            let partly = if self.watched < self.allocated {
                format!(" of {}", say(self.watched))
            } else {
                String::new()
            };
            format!("{used:.1}{partly}")
        });
        let largest = match &self.largest_pod {
            Some(largest) => format!("{} on {}", say(largest.devices), largest.node),
            None => "none".to_owned(),
        };
        let groups = self.largest_pod.as_ref().map(|largest| (largest.within_nvlink, largest.within_numa));
        let (nvlink, numa) = groups.unwrap_or_default();
        let together = [("by NVLink", nvlink), ("on one NUMA node", numa)];
        let together: Vec<_> =
            together.into_iter().filter_map(|(how, count)| Some(format!("{} {how}", count?))).collect();
        let gangs = self
            .gangs
            .iter()
            .filter(|gang| gang.pods > 0)
            .map(|gang| format!("{}×{}", gang.pods, gang.devices));
        vec![
            format!("{}{}", self.resource, if accelerated { "" } else { " (no accelerators)" }),
            format!("{model}{shared}"),
            self.nodes.to_string(),
            say(self.capacity),
            say(self.allocatable),
            say(self.requested),
            number(self.allocated),
            or_unknown(used),
            if accelerated { self.idle.to_string() } else { "-".to_owned() },
            number(self.free),
            if accelerated { number(self.stranded) } else { "-".to_owned() },
            self.waiting_pods.to_string(),
            largest,
            if together.is_empty() { "-".to_owned() } else { together.join(", ") },
            gangs.collect::<Vec<_>>().join(" "),
            self.fragmentation.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0)),
            format!("{:.0}", self.cpu_free_cores),
            bytes(self.memory_free_bytes),
            money(self.idle_cost_per_hour),
        ]
    }
}

impl VirtualNode {
    fn rows(&self) -> Vec<Vec<String>> {
        let said = |resource: &str, amount: i64| match resource {
            "cpu" => cores(amount),
            "memory" => bytes(amount),
            _ => amount.to_string(),
        };
        #[allow(clippy::cast_possible_truncation)]
        let measured = |resource: &str, amount: f64| match resource {
            "cpu" => format!("{:.1}", amount / 1000.0),
            "memory" => bytes(amount as i64),
            _ => format!("{amount:.1}"),
        };
        let node =
            if self.nodes > 1 { format!("{} ({} nodes)", self.node, self.nodes) } else { self.node.clone() };
        let state = self.closed.clone().unwrap_or_else(|| "open".to_owned());
        self.offers
            .iter()
            .map(|offer| {
                let say = |amount| said(&offer.resource, amount);
                let used = offer.used.map(|used| measured(&offer.resource, used));
                vec![
                    node.clone(),
                    self.provider.clone(),
                    offer.resource.clone(),
                    say(offer.capacity),
                    say(offer.allocatable),
                    say(offer.requested),
                    say(offer.allocated),
                    if offer.resource == "pods" { "-".to_owned() } else { or_unknown(used) },
                    say(offer.largest_pod),
                    state.clone(),
                ]
            })
            .collect()
    }
}

impl Holder {
    fn row(&self) -> Vec<String> {
        vec![
            self.namespace.clone(),
            self.pod.clone(),
            self.owner.clone().unwrap_or_default(),
            self.node.clone(),
            self.resource.clone(),
            self.devices.to_string(),
            or_unknown(self.idle_s.map(lasting)),
            or_unknown(self.since.map(|since| since.to_string())),
            money(self.cost_per_hour),
            self.shows.clone(),
        ]
    }
}

impl Waiting {
    fn row(&self) -> Vec<String> {
        let name = match (&self.pod, &self.owner, self.pods) {
            (Some(pod), Some(owner), Some(2..)) => format!("{owner} ({pod}, …)"),
            (Some(pod), ..) => pod.clone(),
            (None, owner, _) => owner.clone().unwrap_or_default(),
        };
        vec![
            self.namespace.clone(),
            name,
            self.pods.map_or_else(|| "not made".to_owned(), |pods| pods.to_string()),
            self.asks.clone(),
            or_unknown(self.waits_s.map(lasting)),
            self.why.clone(),
            self.starts_if.join("; or "),
        ]
    }
}
