// Pictures that are given: chosen, dropped or pasted.
(function() {
    const page = window.dreamboothPage;
    if (page.isUploading) return;
    const {root, byId, within, click} = page;
    const UPLOAD_AT_MOST_MS = 600000, ARRIVED_MS = 1000;

    // gradio 3, which alone lists files while they are on their way, forgets an upload when an answer to anything else comes
    // meanwhile. Fields are judged afterwards therefore, and what is forgotten all the same is sent again.
    function isUploading(now) {
        const place = byId('dreambooth_upload');
        if (!place || !place.querySelector('.file-preview')) {
            if (page.unjudged) click('dreambooth_tell');
            page.unjudged = false;
            return false;
        }
        if (page.given && page.arrived > page.sent && now - page.arrived > ARRIVED_MS && !place.querySelector('.file-preview a')) {
            page.taking = 0;
            place.querySelector('button').click();  // empties the list
            setTimeout(() => send(page.given), 100);
        }
        return now - page.sent < UPLOAD_AT_MOST_MS;
    }

    function send(files) {
        const field = root().querySelector('#dreambooth_upload input[type=file]');
        if (!field) return false;
        const given = new DataTransfer();
        files.forEach((file) => given.items.add(file));
        field.files = given.files;
        field.dispatchEvent(new Event('change', {bubbles: true}));
        return true;
    }

    ['change', 'drop'].forEach((kind) => document.addEventListener(kind, (event) => {
        if (!within(event, '#dreambooth_upload')) return;
        const files = Array.from((event.dataTransfer || event.target).files || []);
        if (files.length) Object.assign(page, {given: files, sent: Date.now()});
    }, true));

    // The framework drops pictures that arrive before the server has put away the ones before: they are sent again then.
    const mark = (file) => [file.name, file.size, file.lastModified].join();
    function arrived() {
        page.arrived = Date.now();
        if (page.sent === page.taken) return;
        if (!page.taking || page.arrived - page.taking > UPLOAD_AT_MOST_MS) page.taking = page.sent;
        else if (page.taking !== page.sent) page.given.forEach((file) => missed.set(mark(file), file));
    }

    const missed = new Map();
    function putAway() {
        Object.assign(page, {taken: page.taking, taking: 0});
        const files = Array.from(missed.values());
        missed.clear();
        if (files.length) setTimeout(() => send(files), 300);  // the field is empty by then, and the folder named
    }

    new PerformanceObserver((seen) => {
        if (seen.getEntries().some((entry) => /\/upload(\?|$)/.test(entry.name))) arrived();
    }).observe({type: 'resource'});

    document.addEventListener('blur', (event) => {
        // A list closes when it is left, and nobody is asked about it then.
        if (!within(event, '#dreambooth_tabs') || event.target.dataset.testid !== 'textbox' || !isUploading(Date.now())) return;
        event.stopPropagation();
        page.unjudged = true;
    }, true);

    document.addEventListener('paste', (event) => {
        const step = byId('dreambooth_step_pictures');
        if (!step || step.offsetParent === null || step.closest('[inert]')) return;
        const pictures = Array.from((event.clipboardData || {}).files || []).filter((file) => file.type.startsWith('image/'));
        if (pictures.length && send(pictures)) event.preventDefault();
    });

    Object.assign(page, {isUploading, putAway});
})();
