//! How long calls take, ours and the echo server's by turns, so that whatever else the machine does hits both.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use prost::Message as _;
use spillway_proto::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest,
    PreferredAllocationRequest, device_plugin_client::DevicePluginClient,
};
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};

use crate::{Measure, echo, standin_kubelet::StandinKubelet};

/// Calls before it counts.
const WARM_UP: usize = 200;

/// How long each call of a kind took, sorted.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    fn at(&self, of_thousand: usize) -> f64 {
        let index = self.0.len() * of_thousand / 1000;
        self.0.get(index.min(self.0.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    /// In microseconds.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "p50_us": self.at(500), "p99_us": self.at(990) })
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    pub(crate) allocate: Times,
    pub(crate) allocate_echo: Times,
    pub(crate) preferred: Times,
    pub(crate) preferred_echo: Times,
}

pub(crate) async fn measure(kubelet: &StandinKubelet, measure: &Measure) -> anyhow::Result<Latencies> {
    let seen = kubelet.until("the devices", |seen| seen.devices(&measure.resource).is_some()).await;
    let healthy: Vec<String> = seen
        .devices(&measure.resource)
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, health)| *health == "Healthy")
        .map(|(id, _)| id.to_owned())
        .collect();
    let mut plugin = kubelet.plugin(&measure.resource);
    let preferred = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_ids: healthy.clone(),
            must_include_device_ids: Vec::new(),
            allocation_size: i32::try_from(measure.size.min(healthy.len())).unwrap_or(i32::MAX),
        }],
    };
    let answer = plugin.get_preferred_allocation(preferred.clone()).await?.into_inner();
    let device_ids = answer.container_responses.first().context("no answer")?.device_ids.clone();
    let allocate = AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids }] };
    let granted = plugin.allocate(allocate.clone()).await?.into_inner();

    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join(echo::ALLOCATE), granted.encode_to_vec())?;
    std::fs::write(folder.path().join(echo::PREFERRED), answer.encode_to_vec())?;
    let socket = folder.path().join("echo.sock");
    let _server = Command::new(std::env::current_exe()?)
        .arg("echo")
        .arg(&socket)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("can't start the echo server")?;
    let mut bare = DevicePluginClient::new(connect(&socket).await?);

    let mut times = Latencies::default();
    for call in 0..WARM_UP + measure.calls {
        let counts = call >= WARM_UP;
        let took = |times: &mut Times, began: Instant| {
            if counts {
                times.0.push(began.elapsed());
            }
        };
        let began = Instant::now();
        plugin.allocate(allocate.clone()).await?;
        took(&mut times.allocate, began);
        let began = Instant::now();
        bare.allocate(allocate.clone()).await?;
        took(&mut times.allocate_echo, began);
        let began = Instant::now();
        plugin.get_preferred_allocation(preferred.clone()).await?;
        took(&mut times.preferred, began);
        let began = Instant::now();
        bare.get_preferred_allocation(preferred.clone()).await?;
        took(&mut times.preferred_echo, began);
    }
    for times in
        [&mut times.allocate, &mut times.allocate_echo, &mut times.preferred, &mut times.preferred_echo]
    {
        times.0.sort_unstable();
    }
    Ok(times)
}

async fn connect(socket: &std::path::Path) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
