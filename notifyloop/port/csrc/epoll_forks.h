/* A forked child shares its parent's epoll set: what it changed there would be changed for the parent. So the first that enters an
 * inherited port builds the child a set of its own, of what was registered when it was forked.
 */

#include "set_members.h"

/* Reads which files are in the set, as far as they are those of the records, into `files` if there is such. Returns whether it is this
 * port's set at all: a child may have closed all its descriptors, and opened others. Where nothing can be read, it is trusted. */
static bool read_set(const port_t *port, int epoll, int wake, file_identity_t *files, DWORD *error) {
    FILE *members = open_members(epoll);
    if (!members) {
        *error = errno == ENOMEM || errno == EMFILE || errno == ENFILE ? (DWORD)errno : 0;
        return fcntl(epoll, F_GETFD) >= 0;
    }
    set_member_t member;
    bool ours = false;
    while (next_member(members, &member)) {
        size_t i = (size_t)member.descriptor;
        if (member.descriptor == wake && member.data == port->kernel.wake_up)
            ours = true;
        else if (files && i < port->record_count && member.data == ((uint64_t)port->records[i].generation << 32 | i))
            files[i] = member.file;
    }
    fclose(members);
    *error = 0;
    return ours;
}

/* Registers everything with the new set. What was closed since the fork is lost; and so is what was opened in place of it, if that can be
 * found out: if the two sets hold different files under its number. The parent may have taken it out of the old one; that says nothing. */
static DWORD fill_set(port_t *port, const kernel_t *kernel, const file_identity_t *before, file_identity_t *now) {
    DWORD error = 0;
    for (size_t i = 0; !error && i < port->record_count; i++) {
        record_t *record = &port->records[i];
        if (record->state > LOST) {
            error = (DWORD)tell(port, kernel->epoll, EPOLL_CTL_ADD, (int)i, record, record->kernel.events);
            record->kernel.fired = false;
            if (error && !passes((int)error)) {
                record->state = LOST;
                error = 0;
            }
        }
    }
    if (!error)
        read_set(port, kernel->epoll, kernel->wake, now, &error);
    for (size_t i = 0; !error && i < port->record_count; i++)
        if (port->records[i].state > LOST && before[i].known && now[i].known && !same_file(&before[i], &now[i])) {
            tell(port, kernel->epoll, EPOLL_CTL_DEL, (int)i, &port->records[i], 0);
            port->records[i].state = LOST;
        }
    return error;
}

static DWORD adopt(port_t *port) {
    size_t count = port->record_count ? port->record_count : 1;
    file_identity_t *before = calloc(count, sizeof *before), *now = calloc(count, sizeof *now);
    kernel_t kernel = port->kernel;
    bool ours = false;
    DWORD error = before && now ? 0 : ENOMEM;
    if (!error)
        ours = read_set(port, port->kernel.epoll, port->kernel.wake, before, &error);
    if (!error && !(error = (DWORD)open_set(&kernel)) && (error = fill_set(port, &kernel, before, now)))
        close_set(&kernel);
    free(before);
    free(now);
    if (error)
        return ERROR_AFTER_FORK | error;
    if (ours)
        close_set(&port->kernel);
    port->kernel = kernel;
    port->process = this_process;
    port->left_at = 0;
    return ERROR_SUCCESS;
}

static void close_kernel(const port_t *port) {
    DWORD error;
    if (port->process == this_process || read_set(port, port->kernel.epoll, port->kernel.wake, NULL, &error))
        close_set(&port->kernel);
}
