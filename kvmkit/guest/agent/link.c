// SPDX-License-Identifier: GPL-2.0-only
#include "link.h"
#include "console.h"
#include "session.h"
#include "text.h"

#define PORTS "/sys/class/virtio-ports"

/* Linux include/uapi/linux/vm_sockets.h */
#define VMADDR_CID_ANY UINT32_MAX

struct sockaddr_vm {
	uint16_t family, reserved;
	uint32_t port, cid;
	uint8_t flags, zero[3];
};

struct link links[LINKS_MAX];

void links_begin(void)
{
	small_pages(links, sizeof(links));
	for (size_t at = 0; at < LINKS_MAX; at++)
		links[at].fd = -1;
}

static void put_number(unsigned char *at, uint32_t number, size_t bytes)
{
	while (bytes--) {
		*at++ = (unsigned char)number;
		number >>= 8;
	}
}

static uint32_t get_number(const unsigned char *at, size_t bytes)
{
	uint32_t number = 0;

	while (bytes--)
		number = number << 8 | at[bytes];
	return number;
}

uint32_t frame_number(const struct frame *frame)
{
	return frame->size < 4 ? 0 : get_number(frame->data, 4);
}

/* Sending */

static size_t waiting(const struct link *link)
{
	return link->end - link->begun;
}

size_t link_room(const struct link *link)
{
	size_t used = waiting(link) + HEADER_SIZE;

	if (used >= SEND_SIZE)
		return 0;
	return SEND_SIZE - used < FRAME_MAX ? SEND_SIZE - used : FRAME_MAX;
}

unsigned char *link_payload(struct link *link)
{
	if (link->begun) {
		memmove(link->send, link->send + link->begun, waiting(link));
		link->end -= link->begun;
		link->begun = 0;
	}
	return link->send + link->end + HEADER_SIZE;
}

void link_put(struct link *link, uint16_t session, enum frame_type type, uint8_t stream,
	      const void *data, size_t size)
{
	unsigned char *payload = link_payload(link), *header = payload - HEADER_SIZE;

	if (size > link_room(link))
		return; /* the caller asks link_room() first; never write behind the end */
	if (data && data != payload)
		memcpy(payload, data, size);
	put_number(header, (uint32_t)size, 4);
	put_number(header + 4, session, 2);
	header[6] = type;
	header[7] = stream;
	link->end += HEADER_SIZE + size;
}

void link_put_number(struct link *link, uint16_t session, enum frame_type type, uint8_t stream,
		     uint32_t number)
{
	unsigned char payload[4];

	put_number(payload, number, sizeof(payload));
	link_put(link, session, type, stream, payload, sizeof(payload));
}

void link_put_failed(struct link *link, uint16_t session, long error, const char *text)
{
	unsigned char payload[4 + 256];
	size_t length = length_of(text);

	if (length > 256)
		length = 256;
	put_number(payload, (uint32_t)-error, 4);
	memcpy(payload + 4, text, length);
	link_put(link, session, FRAME_FAILED, 0, payload, 4 + length);
}

static void add_record(struct text *text, const char *key, const char *value)
{
	text_add(text, key);
	text_add(text, value);
	text->length++; /* the NUL that is there */
}

/* The token is that of the hello which this one answers, or empty. */
static void put_hello(struct link *link, const char *token)
{
	struct text hello, window;

	text_clear(&hello);
	text_clear(&window);
	text_add_number(&window, link->kind == LINK_SERIAL ? WINDOW_SIZE_SERIAL : WINDOW_SIZE);
	add_record(&hello, "protocol=", PROTOCOL_VERSION);
	add_record(&hello, "window=", window.data);
	if (*token)
		add_record(&hello, "token=", token);
	link_put(link, 0, FRAME_HELLO, 0, hello.data, hello.length);
}

static void go_away(struct link *link)
{
	if (!link->away)
		sessions_close(link);
	link->away = true;
	link->received = link->begun = link->end = 0;
}

/* False if nothing can ever be sent again. */
static bool flush(struct link *link)
{
	while (waiting(link)) {
		long sent = sys_write(link->fd, link->send + link->begun, waiting(link));

		if (sent == -EAGAIN || sent == -EINTR)
			return true;
		if (sent <= 0) {
			go_away(link);
			return link->kind != LINK_SOCKET && sent != -ENODEV;
		}
		link->begun += (size_t)sent;
	}
	link->begun = link->end = 0;
	return true;
}

/* Receiving */

static void take_hello(struct link *link, const struct frame *frame)
{
	char text[512], *at = text, *record, *value;
	const char *token = "";
	size_t size = frame->size < sizeof(text) - 1 ? frame->size : sizeof(text) - 1;

	memcpy(text, frame->data, size);
	text[size] = '\0';
	sessions_close(link); /* whoever was there before is not there any more */
	link->window = WINDOW_SIZE;
	while ((record = next_record(&at, text + size))) {
		if ((value = after(record, "window=")))
			link->window = (uint32_t)number_or(value, INT32_MAX, WINDOW_SIZE);
		else if ((value = after(record, "token=")) && length_of(value) <= TOKEN_MAX)
			token = value;
	}
	put_hello(link, token);
}

static void take(struct link *link, const struct frame *frame)
{
	switch (frame->type) {
	case FRAME_HELLO:
		take_hello(link, frame);
		break;
	case FRAME_PING:
		link_put(link, frame->session, FRAME_PONG, 0, frame->data,
			 frame->size < PING_MAX ? frame->size : PING_MAX);
		break;
	case FRAME_PONG:
		break;
	default:
		session_take(link, frame);
	}
}

/* Every frame that is whole, as long as an answer has room. */
static bool take_all(struct link *link)
{
	size_t at = 0;
	bool fine = true;

	while (link->received - at >= HEADER_SIZE && link_room(link) >= ANSWER_MAX) {
		const unsigned char *header = link->receive + at;
		struct frame frame = {
			.size = get_number(header, 4),
			.session = (uint16_t)get_number(header + 4, 2),
			.type = header[6],
			.stream = header[7],
			.data = header + HEADER_SIZE,
		};

		if (frame.size > FRAME_MAX) {
			link_put_failed(link, 0, -EMSGSIZE, "a frame is too long");
			fine = false;
			break;
		}
		if (link->received - at < HEADER_SIZE + frame.size)
			break;
		at += HEADER_SIZE + frame.size;
		take(link, &frame);
	}
	memmove(link->receive, link->receive + at, link->received - at);
	link->received -= at;
	return fine;
}

static bool fill(struct link *link)
{
	size_t room = sizeof(link->receive) - link->received;
	long got = room ? sys_read(link->fd, link->receive + link->received, room) : -EAGAIN;

	if (got == -EAGAIN || got == -EINTR)
		return true;
	if (got <= 0) {
		go_away(link);
		return link->kind != LINK_SOCKET && got != -ENODEV;
	}
	if (link->away) {
		link->away = false;
		put_hello(link, "");
	}
	link->received += (size_t)got;
	return true;
}

short link_events(const struct link *link)
{
	short events = 0;

	if (link->received < sizeof(link->receive) && link_room(link) >= ANSWER_MAX)
		events |= POLLIN;
	if (waiting(link))
		events |= POLLOUT;
	return events;
}

bool link_move(struct link *link, short events)
{
	if (events & (POLLHUP | POLLERR | POLLNVAL)) {
		if (link->kind == LINK_SOCKET && !(events & POLLIN))
			return false;
		if (!(events & POLLIN))
			go_away(link);
	} else if (link->away) {
		link->away = false; /* somebody has come */
		put_hello(link, "");
	}
	if ((events & POLLIN) && !fill(link))
		return false;
	if (!take_all(link)) {
		flush(link);
		return false;
	}
	return link->away || flush(link);
}

void link_close(struct link *link)
{
	sessions_close(link);
	sys_close(link->fd);
	link->fd = -1;
}

/* Opening */

static struct link *add(int fd, enum link_kind kind)
{
	for (size_t at = kind == LINK_SOCKET; at < LINKS_MAX; at++) {
		struct link *link = &links[at];

		if (link->fd >= 0)
			continue;
		link->fd = fd;
		link->kind = kind;
		link->away = false;
		link->window = WINDOW_SIZE;
		link->received = link->begun = link->end = 0;
		put_hello(link, "");
		return link;
	}
	sys_close(fd);
	return NULL;
}

struct directory_entry { /* struct linux_dirent64 */
	uint64_t inode;
	int64_t offset;
	uint16_t size;
	uint8_t type;
	char name[];
};

/* "/dev/vport0p1" of the port with our name. */
static bool find_port(struct text *path)
{
	_Alignas(8) char entries[2048];
	char name[64];
	long size, at, fd = sys_open(PORTS, O_RDONLY | O_DIRECTORY);
	bool found = false;

	if (fd < 0)
		return false;
	while (!found && (size = sys3(__NR_getdents64, fd, (long)entries, sizeof(entries))) > 0) {
		for (at = 0; at < size && !found;) {
			struct directory_entry *entry = (void *)(entries + at);
			size_t length;

			at += entry->size;
			text_clear(path);
			text_add(path, PORTS "/");
			text_add(path, entry->name);
			text_add(path, "/name");
			length = read_file(path->data, name, sizeof(name));
			if (length && name[length - 1] == '\n')
				name[length - 1] = '\0';
			found = same(name, PORT_NAME);
			text_clear(path);
			text_add(path, "/dev/");
			text_add(path, entry->name);
		}
	}
	sys_close((int)fd);
	return found;
}

bool link_open_port(const char *path)
{
	enum link_kind kind = LINK_PORT;
	struct text found;
	long fd;

	if (!path && !find_port(&found))
		return false;
	fd = sys_open(path ? path : found.data, O_RDWR | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return false;
	if (path) {
		struct termios settings;

		if (!sys_ioctl((int)fd, TCGETS, &settings)) {
			kind = LINK_SERIAL;
			terminal_raw((int)fd);
		}
	}
	return add((int)fd, kind) != NULL;
}

int link_listen(unsigned int port)
{
	struct sockaddr_vm address = { .family = AF_VSOCK, .port = port, .cid = VMADDR_CID_ANY };
	int fd = (int)sys3(__NR_socket, AF_VSOCK, SOCK_STREAM | O_CLOEXEC | O_NONBLOCK, 0);
	long error;

	if (fd < 0)
		return fd;
	error = sys3(__NR_bind, fd, (long)&address, sizeof(address));
	if (!error)
		error = sys3(__NR_listen, fd, 4, 0);
	if (!error)
		return fd;
	sys_close(fd);
	return (int)error;
}

void link_accept(int listener)
{
	struct sockaddr_vm peer = { 0 };
	int size = sizeof(peer);
	int fd = (int)sys6(__NR_accept4, listener, (long)&peer, (long)&size,
			   O_CLOEXEC | O_NONBLOCK, 0, 0);

	if (fd < 0)
		return;
	/* Programs of the guest itself come from its own address, or the loopback's. */
	if (size < (int)sizeof(peer) || peer.cid != HOST_CID)
		sys_close(fd);
	else
		add(fd, LINK_SOCKET);
}
