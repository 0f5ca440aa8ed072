//! The instance's side of the admin socket.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::proto::{AdminError, Answer, Envelope, ErrorCode, MAX_LINE, Request, VERSION};

/// Connections served at once; an operator's scripts need far fewer.
const MAX_CONNECTIONS: usize = 64;

/// A connection that says nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Executes requests.
pub trait Handler: Send + Sync + 'static {
    /// Executes one request for the user with this uid; `None` when the system did not tell.
    fn handle(
        &self,
        uid: Option<u32>,
        request: Request,
    ) -> impl Future<Output = Result<Value, AdminError>> + Send;
}

/// Binds the socket, private from its first moment (the process's umask is 077).
///
/// # Errors
/// The operating system's.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop` becomes true. Connections that are open then live until their end.
pub async fn serve<H: Handler>(
    listener: UnixListener,
    handler: Arc<H>,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "admin socket: too many connections");
            continue;
        };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            if let Err(error) = connection(stream, handler.as_ref()).await {
                tracing::debug!(%error, "admin connection ended");
            }
            drop(slot);
        });
    }
}

async fn connection<H: Handler>(stream: UnixStream, handler: &H) -> std::io::Result<()> {
    let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let mut limited = (&mut read).take(limit);
        let bytes = tokio::time::timeout(IDLE, limited.read_until(b'\n', &mut line)).await??;
        if bytes == 0 {
            return Ok(());
        }
        let result = match parse(&line) {
            Ok(request) => handler.handle(uid, request).await,
            Err(error) => Err(error),
        };
        let complete = line.ends_with(b"\n");
        let answer = match result {
            Ok(result) => Answer { v: VERSION, result: Some(result), error: None },
            Err(error) => Answer { v: VERSION, result: None, error: Some(error) },
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        if !complete {
            return Ok(());
        }
    }
}

fn parse(line: &[u8]) -> Result<Request, AdminError> {
    let bad = |message: String| AdminError::new(ErrorCode::BadRequest, message);
    if !line.ends_with(b"\n") {
        return Err(bad(format!("a request is one line of at most {MAX_LINE} bytes")));
    }
    // The version is read first, so that a newer client is told so instead of "unknown op".
    let value: Value =
        serde_json::from_slice(line).map_err(|e| bad(format!("not a JSON line: {e}")))?;
    match value.get("v").and_then(Value::as_u64) {
        Some(v) if v == u64::from(VERSION) => {}
        Some(v) => {
            return Err(bad(format!(
                "this instance speaks version {VERSION} of the admin protocol, not {v}; \
                 use the `runnel` command of the same version as the running instance"
            )));
        }
        None => return Err(bad("the request has no version (\"v\")".to_owned())),
    }
    let envelope: Envelope =
        serde_json::from_value(value).map_err(|e| bad(format!("unknown request: {e}")))?;
    Ok(envelope.request)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::admin::proto::Paging;
    use crate::admin::{Client, ClientError};
    use crate::state::StateDir;

    struct Echo;

    impl Handler for Echo {
        async fn handle(&self, uid: Option<u32>, request: Request) -> Result<Value, AdminError> {
            match request {
                Request::Status => Ok(Value::from(uid)),
                Request::Stop { keep: false } => Ok(Value::Null),
                other => Err(AdminError::new(ErrorCode::NotFound, format!("{other:?}"))),
            }
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn the_socket_is_private_and_the_actor_is_the_callers_uid() {
        let dir = tempfile::tempdir().unwrap();
        let path = StateDir::socket(dir.path());
        let runtime = runtime();
        let (stop, stopped) = watch::channel(false);
        let listener = runtime.block_on(async { bind(&path).unwrap() });
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let server = runtime.spawn(serve(listener, Arc::new(Echo), stopped));

        let mut client = Client::connect(dir.path()).unwrap();
        let uid: Option<u32> = client.ask(Request::Status).unwrap();
        assert_eq!(uid, Some(rustix::process::getuid().as_raw()));
        let () = client.ask(Request::Stop { keep: false }).unwrap();
        let refused = client.ask::<Value>(Request::TokenList(Paging::default())).unwrap_err();
        assert!(matches!(
            refused,
            ClientError::Refused(AdminError { code: ErrorCode::NotFound, .. })
        ));

        stop.send(true).unwrap();
        runtime.block_on(server).unwrap();
        drop(client);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Client::connect(dir.path()), Err(ClientError::NotRunning(_))));
    }

    #[test]
    fn another_version_and_garbage_are_told_apart() {
        let newer = parse(b"{\"v\":3,\"op\":\"future\"}\n").unwrap_err();
        assert!(newer.message.contains("speaks version 2"), "{}", newer.message);
        assert!(parse(b"{\"op\":\"status\"}\n").unwrap_err().message.contains("no version"));
        assert!(parse(b"hello\n").unwrap_err().message.contains("not a JSON line"));
        assert!(
            parse(b"{\"v\":2,\"op\":\"x\"}\n").unwrap_err().message.contains("unknown request")
        );
        assert_eq!(parse(b"{\"v\":2,\"op\":\"status\"}\n").unwrap(), Request::Status);
        assert!(parse(b"{\"v\":1").unwrap_err().message.contains("one line"));
    }
}
