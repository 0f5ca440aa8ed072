//! Error answers (RFC 9457), and which paths get them.

use serde_json::json;

use super::Reply;

/// Whether a path is one of the JSON interfaces. A label before the well-known part of EST may be
/// any word, so that one decides.
pub(super) fn is_json(path: &str) -> bool {
    path.starts_with("/v1/") && !path.contains("/.well-known/")
}

/// An error answer; `code` is a word with underscores.
pub(super) fn problem(status: u16, code: &str, detail: &str) -> Reply {
    let title = code.strip_prefix("hook_").unwrap_or(code).replace('_', " ");
    let problem = json!({
        "type": format!("urn:runnel:problem:{code}"),
        "title": title,
        "status": status,
        "detail": detail,
    });
    Reply::new(status, "application/problem+json", problem.to_string().into_bytes())
}

/// What the listener itself answers to a request that cannot be read; text where nobody speaks
/// JSON.
pub(super) fn unread(path: &str, status: u16, code: &str, detail: &str) -> Reply {
    match is_json(path) {
        true => problem(status, code, detail),
        false => Reply::text(status, format!("{detail}\n")),
    }
}

/// Says which methods a resource has (RFC 9110 15.5.6).
pub(super) fn allowing(mut reply: Reply, methods: &str) -> Reply {
    reply.headers.push(("allow", methods.to_owned()));
    reply
}
