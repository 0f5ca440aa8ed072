//! The socket against the running kernel; needs no privileges.

use super::*;

const RTM_GETLINK: u16 = 18;
const XFRM_MSG_GETSADINFO: u16 = 0x23;

#[test]
fn dumps_links() {
    let mut netlink = Netlink::open(Protocol::Route).unwrap();
    let request = Message::new(RTM_GETLINK, 0, &[0; 16]);
    let indexes = netlink
        .dump("list links", &request, |kind, payload| {
            assert_eq!(kind, 16, "RTM_NEWLINK");
            Ok(payload.get(4..8).map(|b| b.to_vec()))
        })
        .unwrap();
    assert!(!indexes.is_empty());
    // A parse error leaves the socket usable.
    let failed = netlink.dump("list links", &request, |_, _| {
        Err::<Option<()>, _>(PlaneError::Malformed("no".to_owned()))
    });
    assert_eq!(failed, Err(PlaneError::Malformed("no".to_owned())));
    let again = netlink.dump("list links", &request, |_, _| Ok(Some(()))).unwrap();
    assert_eq!(again.len(), indexes.len());
}

#[test]
fn a_refusal_is_a_sentence() {
    let mut netlink = Netlink::open(Protocol::Route).unwrap();
    // RTM_GETLINK of an interface index that cannot exist.
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&0x7fff_fff0_u32.to_ne_bytes());
    let error = netlink.query("show a link", Message::new(RTM_GETLINK, 0, &fixed)).unwrap_err();
    let PlaneError::Kernel { errno, .. } = &error else { panic!("{error}") };
    assert_eq!(*errno, libc::ENODEV);
    assert!(error.to_string().contains("ip link"), "{error}");
}

#[test]
fn batches_keep_order_and_continue_after_a_refusal() {
    let mut netlink = Netlink::open(Protocol::Route).unwrap();
    // Control messages are acknowledged unseen; rtnetlink knows no type 0x3ff0. More than two
    // chunks, every third one refused.
    let messages = (0..250)
        .map(|n| Message::new(if n % 3 == 0 { 0x3ff0 } else { NLMSG_NOOP }, 0, &[0; 4]))
        .collect();
    let results = netlink.batch(messages).unwrap();
    assert_eq!(results.len(), 250);
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), n % 3 == 0, "message {n}");
    }
}

#[test]
fn queries_xfrm_when_permitted() {
    let Ok(mut netlink) = Netlink::open(Protocol::Xfrm) else {
        println!("skipped: no NETLINK_XFRM on this kernel");
        return;
    };
    match netlink.try_query(Message::new(XFRM_MSG_GETSADINFO, 0, &[0; 4])).unwrap() {
        Ok((kind, payload)) => {
            assert_eq!(kind, 0x22);
            assert!(payload.len() >= 4);
        }
        Err(refusal) => assert_eq!(refusal.errno, libc::EPERM),
    }
}
