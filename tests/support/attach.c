// usage: attach NAME PROGRAM [ARG…]
//
// Runs a program. Whatever it starts under NAME, itself or by others, is traced by strace from its first instruction
// on, with the arguments in $TRACE_OPTIONS. The supervisor is started by its own program, so nothing can be put in its
// place, and that program is linked statically, so nothing can be loaded into it: the one way in is ptrace(2), which
// tells of each execve(2). Ends as the program does.

#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define FOLLOWED (PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)

// Time for strace to take a process over. Where only a parent may trace, it never does.
#define STRACE_PATIENCE_MS 60000

static void fail(const char *what) {
    perror(what);
    exit(125);
}

// Whether a process calls itself so: the first of its arguments, without a directory.
static int is_called(pid_t pid, const char *name) {
    char path[64], words[4096] = "";
    snprintf(path, sizeof path, "/proc/%d/cmdline", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    (void)!fread(words, 1, sizeof words - 1, file);
    fclose(file);
    return strcmp(basename(words), name) == 0;
}

static int tracer_of(pid_t pid) {
    char path[64], line[256];
    int tracer = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *status = fopen(path, "re");
    while (status && fgets(line, sizeof line, status))
        sscanf(line, "TracerPid: %d", &tracer);
    if (status)
        fclose(status);
    return tracer;
}

// Gives a process that has just begun to strace. It is stopped in between, so that it makes no call that strace does
// not see. strace is no child of anybody in the test and holds none of the descriptors, so that nobody waits for it as for
// a writer: it changes nothing but time.
static void hand_over(pid_t pid) {
    if (kill(pid, SIGSTOP) != 0 || ptrace(PTRACE_DETACH, pid, 0, 0) != 0)
        fail("attach: cannot let go");
    pid_t middle = fork();
    if (middle == 0) {
        char text[32];
        if (fork() != 0)
            _exit(0);
        setsid();
        int null = open("/dev/null", O_RDWR);
        for (int stream = 0; stream < 3; stream++)
            dup2(null, stream);
        closefrom(3);
        snprintf(text, sizeof text, "%d", (int)pid);
        setenv("TRACE_PID", text, 1);
        execl("/bin/sh", "sh", "-c", "exec strace $TRACE_OPTIONS -p $TRACE_PID", (char *)NULL);
        _exit(127);
    }
    waitpid(middle, NULL, 0);
    for (int waited = 0; tracer_of(pid) == 0 && kill(pid, 0) == 0; waited++) {
        if (waited == STRACE_PATIENCE_MS) {
            fprintf(stderr, "attach: strace does not trace '%d': is kernel.yama.ptrace_scope 0?\n", (int)pid);
            kill(pid, SIGKILL);
            exit(125);
        }
        usleep(1000);
    }
    kill(pid, SIGCONT);
}

// What ptrace(2) says under "Attaching and detaching" and "Group-stop" for tracees that were seized.
static void go_on(pid_t pid, int status) {
    int event = status >> 16, number = WSTOPSIG(status);
    if (event == PTRACE_EVENT_STOP && number != SIGTRAP)
        ptrace(PTRACE_LISTEN, pid, 0, 0);
    else
        ptrace(PTRACE_CONT, pid, 0, event ? 0 : number);
}

int main(int count, char **words) {
    if (count < 3 || !getenv("TRACE_OPTIONS")) {
        fprintf(stderr, "usage: TRACE_OPTIONS=… attach NAME PROGRAM [ARG…]\n");
        return 125;
    }
    pid_t program = fork();
    if (program == 0) {
        raise(SIGSTOP);
        execvp(words[2], words + 2);
        fail("attach: cannot start the program");
    }
    int status;
    if (waitpid(program, &status, WUNTRACED) != program || ptrace(PTRACE_SEIZE, program, 0, FOLLOWED) != 0)
        fail("attach: cannot trace");
    kill(program, SIGCONT);
    for (;;) {
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0)
            fail("attach: cannot wait");
        if (!WIFSTOPPED(status)) {
            if (pid == program)
                return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        } else if (status >> 16 == PTRACE_EVENT_EXEC && is_called(pid, words[1])) {
            hand_over(pid);
        } else {
            go_on(pid, status);
        }
    }
}
