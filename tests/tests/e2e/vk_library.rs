//! The end-to-end tests that the virtual-kubelet library has for its users, unmodified, on a node of ours.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use spillway_tests::components;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinSet,
};

use crate::{
    Test,
    harness::Pool,
    vk_node::{Daemon, READY, approve, configure, wait_node},
};

pub(crate) const TESTS: &[Test] =
    &[("vk_library::of_the_virtual_kubelet_librarys_own_tests", of_the_librarys_own_tests)];

/// How many there are.
const COUNT: usize = 9;
const NODE: &str = "library";
const CONFIG: &str = "
capacity: {cpu: \"8\", memory: 16Gi}
nodes: [{name: library, provider: none, kubeletPort: 10264}]
";

fn of_the_librarys_own_tests(pool: &Pool) -> anyhow::Result<()> {
    let suite = components::ensure_virtual_kubelet()?;
    let namespace = pool.namespace("vk-library")?;
    configure(pool, NODE, CONFIG)?;
    let _daemon = Daemon::start(pool, NODE, NODE, &[NODE], "--admin-address 127.0.0.1:9466")?;
    wait_node(pool, NODE, READY, "True")?;
    approve(pool, NODE)?;

    let proxy = Proxy::start(pool)?;
    let door = Door::open(
        proxy.address,
        format!("GET /api/v1/namespaces/{}/pods/https:{NODE}:10250/proxy/", namespace.name),
        format!("GET /api/v1/nodes/{NODE}/proxy/"),
    )?;
    let kubeconfig = pool.cluster.folder().join("library.conf");
    let server = format!("http://{}", door.address);
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c}}}}], \
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]}}"
    );
    fs::write(&kubeconfig, text).context("can't write a kubeconfig")?;
    let output = Command::new(suite)
        .args(["-test.v", "-node-name", NODE, "-namespace", &namespace.name, "-kubeconfig"])
        .arg(&kubeconfig)
        .stdin(Stdio::null())
        .output()
        .context("can't run the library's tests")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let passed = printed.matches("--- PASS: TestEndToEnd/").count();
    ensure!(output.status.success() && passed == COUNT, "{passed} of {COUNT} passed:\n{printed}");
    Ok(())
}

/// `kubectl proxy`.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(pool: &Pool) -> anyhow::Result<Self> {
        let mut child = Command::new(components::folder().join("kubectl"))
            .arg("--kubeconfig")
            .arg(pool.cluster.kubeconfig())
            .args(["proxy", "--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't run kubectl proxy")?;
        let mut line = String::new();
        let said = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let address = line.trim().rsplit(' ').next().and_then(|address| address.parse().ok());
        let proxy = Self { child, address: address.unwrap_or(([127, 0, 0, 1], 0).into()) };
        ensure!(proxy.address.port() != 0, "kubectl proxy says {line:?}, {said:?}");
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the suite goes in. It asks for statistics by a pod that is named as the node, as which the library's own example runs, and without
/// credentials, which nobody is told anything for here: it is led to the node's proxy instead.
struct Door {
    address: SocketAddr,
    /// Ends with it.
    _runtime: Runtime,
}

impl Door {
    fn open(to: SocketAddr, asked: String, meant: String) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).context("can't listen")?;
        let address = listener.local_addr().context("can't listen")?;
        runtime.spawn(async move {
            let mut led = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (asked, meant) = (asked.clone(), meant.clone());
                led.spawn(async move { lead(client, to, asked.as_bytes(), meant.as_bytes()).await });
            }
        });
        Ok(Self { address, _runtime: runtime })
    }
}

async fn lead(mut client: TcpStream, to: SocketAddr, asked: &[u8], meant: &[u8]) -> io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let ask = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from_client.read(&mut buffer).await?;
            let read = &buffer[..count];
            // A request without a body comes in one piece.
            match read.strip_prefix(asked) {
                _ if count == 0 => return to_server.shutdown().await,
                Some(rest) => to_server.write_all(&[meant, rest].concat()).await?,
                None => to_server.write_all(read).await?,
            }
        }
    };
    tokio::try_join!(ask, tokio::io::copy(&mut from_server, &mut to_client))?;
    Ok(())
}
