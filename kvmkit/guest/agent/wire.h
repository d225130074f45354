/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent's protocol: docs/guest-protocol.md says what the frames mean.
 *
 * Frames in both directions of a byte stream, each a header and a payload;
 * numbers are little-endian.
 *
 *   offset  size
 *        0     4  bytes of payload, at most FRAME_MAX
 *        4     2  session, chosen by the host; 0 is the agent itself
 *        6     1  type
 *        7     1  stream, for DATA, END and WINDOW; else 0
 */
#ifndef KVMKIT_AGENT_WIRE_H
#define KVMKIT_AGENT_WIRE_H

#define PROTOCOL_VERSION "1"

#define HEADER_SIZE 8
#define FRAME_MAX 65536

enum frame_type {
	FRAME_HELLO = 1,   /* both ways: records KEY=VALUE */
	FRAME_ORDER = 2,   /* to the guest: a part of a session's order (order.h) */
	FRAME_START = 3,   /* to the guest: its last part; start it */
	FRAME_DATA = 4,    /* both ways: bytes of a stream */
	FRAME_END = 5,     /* both ways: the stream has ended */
	FRAME_WINDOW = 6,  /* both ways: u32, so many more bytes may be sent on the stream */
	FRAME_SIGNAL = 7,  /* to the guest: u32 */
	FRAME_RESIZE = 8,  /* to the guest: u16 rows, u16 columns */
	FRAME_STARTED = 9, /* to the host: u32 process ID */
	FRAME_EXITED = 10, /* to the host: u32 status as a shell has it */
	FRAME_FAILED = 11, /* to the host: u32 errno and text; the session is gone */
	FRAME_CLOSE = 12,  /* to the guest: hang up and forget the session */
	FRAME_POWER = 13,  /* to the guest: u32, enum power */
	FRAME_PING = 14,   /* both ways: anything up to PING_MAX bytes */
	FRAME_PONG = 15,   /* both ways: a ping's payload */
};

enum stream {
	STREAM_INPUT = 0,
	STREAM_OUTPUT = 1,
	STREAM_ERROR = 2,
};

enum power {
	POWER_OFF = 0,
	POWER_REBOOT = 1,
	POWER_HALT = 2,
};

#define PING_MAX 256
#define TOKEN_MAX 64

/* Bytes of a stream that may be under way before the first WINDOW, unless HELLO says else. */
#define WINDOW_SIZE 65536
#define WINDOW_SIZE_SERIAL 1024 /* a serial line has no flow control of its own */

#define PORT_NAME "org.kvmkit.agent" /* of the virtio console's port */
#define HOST_CID 2		     /* the host's vsock address */

#endif
