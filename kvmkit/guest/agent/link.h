/* SPDX-License-Identifier: GPL-2.0-only */
/* Links: byte streams to the host that carry the protocol's frames. */
#ifndef KVMKIT_AGENT_LINK_H
#define KVMKIT_AGENT_LINK_H

#include "sys.h"
#include "wire.h"

#define LINKS_MAX 5 /* a port and up to four connections over vsock */

/* Frames that answer one of the host's are at most so long. */
#define ANSWER_MAX 512

#define SEND_SIZE (2 * (HEADER_SIZE + FRAME_MAX))

enum link_kind {
	LINK_PORT,   /* a port of a virtio console: its other end may come and go */
	LINK_SERIAL, /* a serial line */
	LINK_SOCKET, /* a connection over vsock: gone when it is closed */
};

struct link {
	int fd; /* -1: not in use */
	enum link_kind kind;
	bool away; /* a port whose other end is not there */
	uint32_t window; /* first credit of streams to the host */
	size_t received, begun, end; /* in receive; in send: not yet sent is begun..end */
	unsigned char receive[HEADER_SIZE + FRAME_MAX];
	unsigned char send[SEND_SIZE];
};

/* A frame that came in. */
struct frame {
	uint16_t session;
	uint8_t type, stream;
	uint32_t size;
	const unsigned char *data;
};

extern struct link links[LINKS_MAX];

void links_begin(void);

/* Open the device named, or else find the port by its name. False if it is not there yet. */
bool link_open_port(const char *path);

/* Listen for connections of the host: a socket, or a negative errno. */
int link_listen(unsigned int port);
void link_accept(int listener);

/* What must be waited for: a mask for poll(2). */
short link_events(const struct link *link);

/* Take what has come and send what waits; false if the link is broken. */
bool link_move(struct link *link, short events);
void link_close(struct link *link);

/* Bytes of payload that a frame may have now. */
size_t link_room(const struct link *link);

/*
 * Send a frame; the payload must fit into link_room(). For reading into place:
 * link_payload() is where the payload of the next frame goes.
 */
void link_put(struct link *link, uint16_t session, enum frame_type type, uint8_t stream,
	      const void *data, size_t size);
unsigned char *link_payload(struct link *link);
void link_put_number(struct link *link, uint16_t session, enum frame_type type, uint8_t stream,
		     uint32_t number);
void link_put_failed(struct link *link, uint16_t session, long error, const char *text);

/* Little-endian numbers of a payload; 0 where it is too short. */
uint32_t frame_number(const struct frame *frame);

#endif
