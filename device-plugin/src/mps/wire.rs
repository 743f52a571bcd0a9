//! What the agent and the keeper of the MPS daemons say to each other, over a socket in the folder of the pipes: one line of JSON a message.
//! The agent says which daemons there are to be, all of them; the keeper says how each is doing, at each change and now and then.

use std::{collections::BTreeMap, io, path::PathBuf, pin::Pin, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Plan;
use crate::device::{DeviceId, NameError, ResourceName};

/// The socket's name.
pub(super) const SOCKET: &str = "keeper.sock";
/// How often the keeper says something, and how long the agent waits for it.
pub(super) const BEAT: Duration = Duration::from_secs(5);
pub(super) const SILENCE: Duration = Duration::from_secs(20);
/// Far more than any machine's GPUs take.
const LINE_LIMIT: u64 = 1 << 20;

/// Why what came over the socket can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the other end hung up")]
    End,
    #[error("can't connect to {path}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("can't speak over the socket")]
    Socket(#[source] io::Error),
    #[error("a message of more than {LINE_LIMIT} bytes")]
    TooLong,
    #[error("a message that is none")]
    Message(#[source] serde_json::Error),
    #[error("a message with a bad name")]
    Name(#[source] NameError),
    #[error("nothing was heard for {SILENCE:?}")]
    Silent,
}

/// One daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// The GPUs, and each client's memory in MiB.
    gpus: BTreeMap<String, Option<u64>>,
    clients: u32,
}

/// All daemons there are to be, by the resource that is shared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Orders {
    daemons: BTreeMap<String, Order>,
}

/// How a daemon is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// What it was started for.
    pub(super) order: Order,
    /// Why it is of no use yet, or any more.
    pub(super) trouble: Option<String>,
}

/// How all of them are doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) daemons: BTreeMap<String, State>,
}

impl From<&Plan> for Order {
    fn from(plan: &Plan) -> Self {
        let gpus = plan.gpus.iter().map(|(gpu, memory)| (gpu.to_string(), *memory)).collect();
        Self { gpus, clients: plan.clients }
    }
}

impl From<&super::Plans> for Orders {
    fn from(plans: &super::Plans) -> Self {
        let daemons =
            plans.iter().map(|(resource, plan)| (resource.to_string(), Order::from(plan))).collect();
        Self { daemons }
    }
}

impl TryFrom<Orders> for super::Plans {
    type Error = WireError;

    fn try_from(orders: Orders) -> Result<Self, WireError> {
        let plan = |order: Order| {
            let gpus = order.gpus.into_iter().map(|(gpu, memory)| Ok((DeviceId::new(gpu)?, memory)));
            Ok(Plan { gpus: gpus.collect::<Result<_, NameError>>()?, clients: order.clients })
        };
        let daemons = orders.daemons.into_iter();
        daemons
            .map(|(resource, order)| Ok((ResourceName::new(resource)?, plan(order)?)))
            .collect::<Result<_, NameError>>()
            .map_err(WireError::Name)
    }
}

/// One end's way to hear: half a message waits here for its other half, whenever the waiting is broken off.
#[derive(Debug)]
pub(super) struct Ear<R> {
    from: R,
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Ear<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, line: Vec::new() }
    }

    /// The next message. May be broken off and called again.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> Result<T, WireError> {
        let room = LINE_LIMIT.saturating_sub(self.line.len() as u64);
        let mut limited = Pin::new(&mut self.from).take(room);
        limited.read_until(b'\n', &mut self.line).await.map_err(WireError::Socket)?;
        if self.line.last() != Some(&b'\n') {
            return Err(if self.line.len() as u64 >= LINE_LIMIT {
                WireError::TooLong
            } else {
                WireError::End
            });
        }
        let message = serde_json::from_slice(&self.line).map_err(WireError::Message);
        self.line.clear();
        message
    }
}

/// Says something.
pub(super) async fn say(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), WireError> {
    let mut line = serde_json::to_vec(message).map_err(WireError::Message)?;
    line.push(b'\n');
    to.write_all(&line).await.map_err(WireError::Socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(bytes: &[u8]) -> Result<super::super::Plans, WireError> {
        Ear::new(bytes).hear::<Orders>().await.and_then(TryInto::try_into)
    }

    #[tokio::test]
    async fn orders_arrive_as_they_were_given() {
        let gpus = [("GPU-0", Some(1024)), ("GPU-1", None)];
        let gpus = gpus.map(|(gpu, memory)| (DeviceId::new(gpu).unwrap(), memory)).into();
        let plans = super::super::Plans::from([(
            ResourceName::new("nvidia.com/gpu").unwrap(),
            Plan { gpus, clients: 4 },
        )]);
        let mut line = Vec::new();
        say(&mut line, &Orders::from(&plans)).await.unwrap();
        assert_eq!(heard(&line).await.unwrap(), plans);
        // Broken off in the middle, it is not lost.
        let (mut mouth, ear) = tokio::io::duplex(64 << 10);
        let mut ear = Ear::new(tokio::io::BufReader::new(ear));
        mouth.write_all(&line[..10]).await.unwrap();
        let broken_off = tokio::time::timeout(Duration::from_millis(10), ear.hear::<Orders>()).await;
        assert!(broken_off.is_err());
        mouth.write_all(&line[10..]).await.unwrap();
        assert_eq!(ear.hear::<Orders>().await.unwrap(), Orders::from(&plans));
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        for bad in [
            "\n",
            "{}\n",
            "{\"daemons\":3}\n",
            "{\"daemons\":{\"../x\":{\"gpus\":{},\"clients\":1}}}\n",
            "{\"daemons\":{\"nvidia.com/gpu\":{\"gpus\":{\"../GPU\":null},\"clients\":1}}}\n",
            "{\"daemons\":{\"nvidia.com/gpu\":{\"gpus\":{\"GPU-0\":-1},\"clients\":1}}}\n",
            "{\"daemons\":{}}",
        ] {
            assert!(heard(bad.as_bytes()).await.is_err(), "{bad}");
        }
        let endless = vec![b' '; 2 << 20];
        assert!(matches!(heard(&endless).await, Err(WireError::TooLong)));
    }
}
