/* Loaded with LD_PRELOAD into a program under test: whatever address it binds, it is reached from this machine only.
 * Orthanc 1.10 and dcmtk have no setting for that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

int bind(int socket, const struct sockaddr *address, socklen_t length)
{
    bind_function original = (bind_function)dlsym(RTLD_NEXT, "bind");
    struct sockaddr_storage local;

    if (length <= sizeof(local)) {
        memcpy(&local, address, length);
        if (address->sa_family == AF_INET)
            ((struct sockaddr_in *)&local)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (address->sa_family == AF_INET6)
            ((struct sockaddr_in6 *)&local)->sin6_addr = in6addr_loopback;
        address = (const struct sockaddr *)&local;
    }
    return original(socket, address, length);
}
