/* What is in an epoll set, by what the kernel tells of its descriptor in /proc/self/fdinfo:
 *
 *     tfd:        4 events:       19 data:         100000004  pos:0 ino:3a459 sdev:9
 *
 * one line for each (file, descriptor), since Linux 3.8; and which file it is since 4.13. It is all that can be asked of a set without
 * changing it. Files that have no inode of their own, such as eventfds, have one in common.
 */

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct {
    bool known;
    unsigned long inode, device;
} file_identity_t;

typedef struct {
    int descriptor;
    uint64_t data;
    file_identity_t file;
} set_member_t;

static FILE *open_members(int epoll) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", epoll);
    return fopen(path, "re");
}

static bool next_member(FILE *members, set_member_t *member) {
    char line[256];
    while (fgets(line, sizeof line, members)) {
        file_identity_t *file = &member->file;
        int count = sscanf(line, "tfd: %d events: %*x data: %" SCNx64 " pos:%*d ino:%lx sdev:%lx", &member->descriptor, &member->data,
                           &file->inode, &file->device);
        if (count >= 2 && member->descriptor >= 0) {
            file->known = count == 4;
            return true;
        }
    }
    return false;
}

static bool same_file(const file_identity_t *one, const file_identity_t *other) {
    return one->inode == other->inode && one->device == other->device;
}
