//! Devices that are asked for work they cannot do.

use xfrm::model::Offload;

use super::*;

#[test]
fn a_device_that_cannot_leaves_the_work_to_the_kernel() {
    in_namespace(|| {
        if !has_esp() {
            return;
        }
        let spec = spec(2, false);
        let client = Client::new(&spec);
        let mut plane = KernelPlane::open(config("gw", IF_ID, Vec::new()), &sink().0).unwrap();
        plane.set_offload(Offload::Packet);
        route_pool();
        // A veth pair refuses whole packets, and takes the encryption without doing it.
        plane.install(&spec).unwrap();
        assert_eq!(client.ping(3), 3, "{}", sh("ip -s xfrm state list nokeys"));
        assert_eq!(plane.usage(spec.id).unwrap().offload, Offload::None, "as the kernel says");
        // What failed on the way left nothing behind.
        assert_eq!(sh("ip xfrm policy list dir out | grep -c '^src'").trim(), "1");
        let moved = Hosts { local: "192.0.2.9:4500".parse().unwrap(), ..spec.hosts };
        plane.update_hosts(spec.id, &moved).unwrap();
        plane.update_hosts(spec.id, &spec.hosts).unwrap();
        assert_eq!(client.ping(3), 3);
        plane.shutdown().unwrap();
        assert_eq!(sh("ip xfrm state; ip xfrm policy list nosock"), "");
    });
}
