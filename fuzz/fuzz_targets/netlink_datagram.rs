#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cofferdam::testkit::netlink_datagram(bytes));
