//! What an established IKE SA holds, by a counting allocator.
#![allow(clippy::unwrap_used)]

use tests::alloc::Counting;
use tests::handshake::bytes_held;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes of an established IKE SA with one child, its share of tables and queues included.
const MOST: usize = 8 * 1024;
/// IKE SAs held at once: just over a power of two, where what grows by doubling has most to spare,
/// so that each counts for more here than among the 10,000 of the benchmark, which take too long
/// without optimisation.
const COUNT: usize = 2060;

#[test]
fn an_established_ike_sa_with_one_child_holds_less_than_8_kib() {
    let each = bytes_held(COUNT).unwrap();
    assert!(each < MOST, "{each} bytes each");
    assert!(each > 1024, "{each} bytes: is anything counted?");
}
