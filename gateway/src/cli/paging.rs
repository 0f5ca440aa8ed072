//! Long listings by pages.

use clap::Args;
use serde::de::DeserializeOwned;

use super::Failure;
use super::output::error_line;
use crate::admin::Client;
use crate::admin::proto::{Page, Paging, Request};

/// `--limit` and `--after` of long listings.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct PageArgs {
    /// At most so many; where the rest begins is told on standard error
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on after this, which an earlier listing with --limit told
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
}

impl PageArgs {
    /// The whole listing, or as much of it as is asked for.
    pub(super) fn list<T: DeserializeOwned>(
        self,
        client: &mut Client,
        request: impl Fn(Paging) -> Request,
    ) -> Result<Vec<T>, Failure> {
        let most = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(1));
        let (mut listed, mut after) = (Vec::new(), self.after);
        loop {
            let limit = Some(most - listed.len());
            let page: Page<T> = client.ask(request(Paging { after, limit }))?;
            listed.extend(page.items);
            let Some(next) = page.next else { return Ok(listed) };
            if listed.len() >= most {
                error_line(&format!("there is more: --after {next}"));
                return Ok(listed);
            }
            after = Some(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;
    use tokio::sync::watch;

    use super::*;
    use crate::admin::proto::{AdminError, ErrorCode};
    use crate::admin::{Handler, bind, serve};
    use crate::state::StateDir;

    /// Seven numbers, in pages of at most three.
    struct Numbers;

    impl Handler for Numbers {
        async fn handle(&self, _: Option<u32>, request: Request) -> Result<Value, AdminError> {
            let Request::TokenList(paging) = request else {
                return Err(AdminError::new(ErrorCode::BadRequest, "only numbers are listed"));
            };
            let begin = paging.after.as_ref().map_or(0, |after| after.parse().unwrap());
            let end = (begin + paging.size().min(3)).min(7);
            let items: Vec<usize> = (begin..end).collect();
            let next = (end < 7).then(|| end.to_string());
            Ok(serde_json::to_value(Page { items, next }).unwrap())
        }
    }

    #[test]
    fn a_listing_is_read_to_its_end_or_to_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (stop, stopped) = watch::channel(false);
        let path = StateDir::socket(directory.path());
        let listener = runtime.block_on(async { bind(&path).unwrap() });
        let server = runtime.spawn(serve(listener, Arc::new(Numbers), stopped));
        let mut client = Client::connect(directory.path()).unwrap();
        let mut list = |limit: Option<u32>, after: Option<&str>| -> Vec<usize> {
            let pages = PageArgs { limit, after: after.map(str::to_owned) };
            pages.list(&mut client, Request::TokenList).unwrap()
        };
        assert_eq!(list(None, None), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(list(Some(5), None), [0, 1, 2, 3, 4]);
        assert_eq!(list(Some(5), Some("5")), [5, 6]);
        assert_eq!(list(Some(7), None).len(), 7);
        stop.send(true).unwrap();
        runtime.block_on(server).unwrap();
    }
}
