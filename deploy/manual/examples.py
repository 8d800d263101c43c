"""What people type first, for the pages of the commands. A test has the real parsers read every line."""

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "qos2-status": [("What the daemon does on this host, and what the kernel lacks:", "qos2 status")],
    "qos2-flows": [("The ids of all flows:", "qos2 flows --json | jq -r '.flows[].id'")],
    "qos2-flow": [("All about one flow:", "qos2 flow 0x00100001")],
    "qos2-explain": [("Why a flow is in its state, in sentences:", "qos2 explain 0x00100001")],
    "qos2-top": [("One table for a script:", "qos2 top --once --json")],
    "qos2-watch": [("The changes of one flow's state, as lines:", "qos2 watch 0x00100001 | cat")],
    "qos2-run": [
        (
            "A backup that disturbs nobody, with all of its children and connections:",
            "qos2 run --type background --rate 20M -- rsync -a src dst",
        ),
        (
            "What exceeds the rate is sent at once, marked down:",
            "qos2 run --type audio_video --rate 8M --shaping use_non_conformant_markings --stats -- ./player",
        ),
    ],
    "qos2-reflector": [
        ("Answer the probes of one network and no other:", "qos2 reflector --allow 192.0.2.0/24"),
        ("As a service, from the next boot on and now:", "systemctl enable --now qos2-reflector"),
    ],
    "qos2d": [
        ("As the service runs it:", "qos2d --config /etc/qos2/qos2d.toml"),
        (
            "A second one beside it, for a trial on one device:",
            "qos2d --socket /tmp/q.sock --pin-path /sys/fs/bpf/trial --device eth1 --metrics ''",
        ),
    ],
}
